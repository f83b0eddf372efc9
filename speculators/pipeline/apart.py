"""A step on a machine that shares no disk with the runner: `python -m speculators.pipeline.apart FOLDER STEP GRACE`.

FOLDER has the runner's `plan.json`; GRACE are the seconds that the step gets to save its state when all is to end. What
it reads is fetched from the remote store (SPECULATORS_REMOTE) into this machine's own (SPECULATORS_STORE), where it is
planned anew and run as any other; what the remote store has lost or spoilt is made here. What was made is pushed.
Events and log lie in FOLDER, for whoever sends them to the runner.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from speculators.errors import SpeculatorsError, StepError
from speculators.pipeline.assembly import resolve
from speculators.pipeline.events import Event, StepReporter
from speculators.pipeline.executors.local import LocalExecutor
from speculators.pipeline.folder import OFFLINE, Consent, RunFolder, create_run, read_plan, write_plan_again
from speculators.pipeline.plan import Plan, Selection, check_machine, make_plan
from speculators.pipeline.remote import VARIABLE, Remote
from speculators.pipeline.run import run_plan
from speculators.pipeline.store import Artifact, Store, default_store
from speculators.pipeline.tied import end_with_the_runner
from speculators.pipeline.transfers import push, take_over


def main(folder: Path, name: str, grace: float) -> int:
    """Do the step; the exit status. What the step's own log does not say is printed."""
    ended: dict[str, set[str]] = {"step_finished": {name}, "step_failed": set()}

    def listen(event: Event) -> None:
        if event["event"] in ended:
            ended[event["event"]].add(event["step"])

    try:
        said = read_plan(folder)
        if said["offline"]:
            os.environ.update(OFFLINE)
        plan, consent = _plan(said, name), _consent(said)
        run = create_run(folder / "runs", plan, consent=consent, texts={})
        take_over(plan, plan[name], run, lambda: False)
        plan = plan.again()
        write_plan_again(run, plan)
        check = _unchecked if consent.anyway else check_machine
        check(plan)
        outcome = run_plan(plan, run, LocalExecutor(grace), listener=listen, check=check)
        if outcome.exit_code == 0:
            _push(plan, run, ended["step_finished"])
    except SpeculatorsError as error:
        print(error, flush=True)
        return error.exit_code
    if name not in ended["step_failed"]:
        print(*outcome.failures, sep="\n\n", flush=True)
    return outcome.exit_code


def _unchecked(plan: Plan) -> None:
    """Run whatever the estimates say."""


def _plan(said: dict[str, Any], name: str) -> Plan:
    wanted = next(step for step in said["steps"] if step["name"] == name)
    store, remote = Store.open(default_store()), Remote.open(os.environ[VARIABLE])
    forced = (name,) if wanted["replaces"] else ()
    selection = Selection(until=(name,), force=forced)
    plan = make_plan(resolve(said["reassemble"])(said["recipe"]), store, selection, remote=remote)
    if plan[name].key != wanted["key"]:
        raise StepError(
            f"{name} is not on this machine what it is where the run was planned: a local file that the recipe names, "
            "a model's newest version, or the kind of machine is another one"
        )
    return plan


def _push(plan: Plan, run: RunFolder, names: Collection[str]) -> None:
    """Let the remote store have the artifacts of these steps."""
    for planned in plan.steps:
        artifact = plan.store.find(planned.name, planned.key) if planned.name in names else None
        if isinstance(artifact, Artifact) and not plan.stays(planned):
            push(plan, artifact, StepReporter(run.events, planned.name), lambda: False)


def _consent(said: dict[str, Any]) -> Consent:
    names = ("offline", "trust_remote_code", "processes", "sharding", "anyway")
    return Consent(**{name: said[name] for name in names}, engine_arguments=tuple(said["engine_arguments"]))


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--tied"]
    if len(arguments) != 3:
        sys.exit("usage: python -m speculators.pipeline.apart FOLDER STEP GRACE [--tied]")
    if "--tied" in sys.argv:
        end_with_the_runner()
    sys.exit(main(Path(arguments[0]), arguments[1], float(arguments[2])))
