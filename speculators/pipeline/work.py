"""The worker: `python -m speculators.pipeline.work RUN_FOLDER STEP` does one step of a planned run.

`--node NUMBER@HOST:PORT` says which of the plan's machines this is, where an executor brings them together.

It is a process of its own so that nothing is pickled, a crash costs one step, and every executor is the same command
with another prefix. All it knows is in `plan.json`; the steps themselves come from the function named there (see
`pipeline.assembly`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.errors import INTERRUPTED, SpeculatorsError, StepError, UsageError
from speculators.pipeline.assembly import Assembly, resolve
from speculators.pipeline.carry import note_written
from speculators.pipeline.digests import remembering
from speculators.pipeline.events import Aside, EventLog, StepReporter
from speculators.pipeline.folder import read_plan
from speculators.pipeline.machine import machine_class, machine_key, peak_memory, versions
from speculators.pipeline.manifest import FileEntry, Manifest, now
from speculators.pipeline.step import Context, Nodes, Step
from speculators.pipeline.store import Artifact, Store, instances
from speculators.pipeline.tied import end_with_the_runner

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """One step of one run, with all that is needed to do it."""

    folder: Path
    plan: Mapping[str, Any]
    assembly: Assembly
    step: Step
    store: Store
    is_aside: bool = False
    """Whether another machine does the same step of the same run and tells how far it is."""

    @classmethod
    def open(cls, folder: Path, name: str, node: str = "") -> Job:
        """Read the plan of the run; raises UsageError when it has no such step."""
        plan = read_plan(folder)
        if node:
            number, _, rendezvous = node.partition("@")
            plan = {**plan, "nodes": {**plan["nodes"], "number": int(number), "rendezvous": rendezvous}}
        assembly = resolve(plan["reassemble"])(plan["recipe"])
        step = next((step for step in assembly.steps if step.name == name), None)
        if step is None:
            raise UsageError(f"the run has no step {name}")
        is_aside = bool(node) and plan["nodes"]["number"] > 0
        return cls(folder, plan, assembly, step, Store.open(Path(plan["store"])), is_aside)

    @property
    def planned(self) -> Mapping[str, Any]:
        """This step's part of the plan."""
        return self.of(self.step.name)

    @property
    def reporter(self) -> StepReporter:
        """The step's voice."""
        return (Aside if self.is_aside else StepReporter)(self.events, self.step.name)

    @property
    def events(self) -> EventLog:
        """The run's events."""
        return EventLog(self.folder / "events.jsonl", self.plan["run"])

    def of(self, name: str) -> Mapping[str, Any]:
        """A step's part of the plan."""
        found: Mapping[str, Any] = next(step for step in self.plan["steps"] if step["name"] == name)
        return found


def main(folder: Path, name: str, node: str = "") -> int:
    """Do the step; the process's exit status. What went wrong is the last line of the log."""
    try:
        job = Job.open(folder, name, node)
        if job.step.cached:
            make(job)
        else:
            write_into_run(job)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return INTERRUPTED
    except SpeculatorsError as error:
        traceback.print_exc()
        print(f"\n{error}", flush=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  a step's bug ends here, and its traceback stands in the log
        traceback.print_exc()
        print(f"\n{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


def make(job: Job) -> Artifact:
    """Publish the step's artifact, or take the one that another run published meanwhile."""
    planned = job.planned
    inputs = _inputs(job)
    made = instances(inputs)
    joins = job.step.spans_nodes and job.plan["nodes"]["number"] > 0
    if joins:
        _join(job, inputs)
    what = f"waiting for {{}}; both need {planned['artifact']}"
    with job.store.hold(
        planned["artifact"],
        run=job.plan["run"],
        waiting=lambda holder: job.reporter.message(what.format(holder)),
    ):
        found = job.store.serving(job.step.name, planned["key"], planned["replaces"], made)
        if found:
            job.events.write("step_cached", step=job.step.name, artifact=found.path.name)
            return found
        if joins:
            raise StepError(f"the first node has not finished {job.step.name}; run again on all of them")
        output = job.store.partial(planned["artifact"], made)
        started, clock = now(), time.monotonic()
        job.events.write("step_started", step=job.step.name, resumed=any(output.iterdir()), pid=os.getpid())
        _check_external(job, "while this run was waiting")
        with remembering(job.store.digests):
            job.step.run(_context(job, {name: artifact.path for name, artifact in inputs.items()}, output))
        _check_external(job, "while the step was running")
        for name, artifact in inputs.items():
            there = job.store.find(name, artifact.manifest.key)
            if not isinstance(there, Artifact) or there.manifest.instance != artifact.manifest.instance:
                raise StepError(f"{name} was changed or removed while the step was reading it; nothing is published")
        seconds = time.monotonic() - clock

        def describe(instance: str, files: dict[str, FileEntry]) -> Manifest:
            return Manifest(
                step=job.step.name,
                key=planned["key"],
                hashed=dict(planned["hashed"]),
                instance=instance,
                instances=made,
                files=files,
                versions=versions(),
                host=machine_class(),
                started=started,
                finished=now(),
                seconds=round(seconds, 3),
                peak_memory=peak_memory(),
                run=job.plan["run"],
                recipe=job.plan["name"],
                estimated_seconds=planned["estimate"]["model_seconds"],
            )

        artifact = job.store.publish(output, describe)
        job.events.write(
            "step_finished",
            step=job.step.name,
            artifact=artifact.path.name,
            seconds=round(time.monotonic() - clock, 3),
            disk=artifact.manifest.size,
            peak_memory=artifact.manifest.peak_memory,
        )
        return artifact


def _join(job: Job, inputs: Mapping[str, Artifact]) -> None:
    """Take part in a step that the first node does and publishes, once it has begun with it."""
    artifact, made, waits = job.planned["artifact"], instances(inputs), False
    while not job.store.is_begun(artifact, made):
        if isinstance(job.store.find(job.step.name, job.planned["key"]), Artifact):
            return
        if not waits:
            waits = True
            job.reporter.message(f"waiting for the first node to begin with {job.step.name}")
        time.sleep(_LOOK_SECONDS)
    clock = time.monotonic()
    job.events.write("step_started", step=job.step.name, resumed=False, pid=os.getpid())
    paths = {name: one.path for name, one in inputs.items()}
    job.step.run(_context(job, paths, job.store.partial_path(artifact)))
    node = job.plan["nodes"]["number"]
    job.reporter.message(f"node {node} has done its part in {time.monotonic() - clock:.0f} s")


def write_into_run(job: Job) -> None:
    """Do a step that is never cached: it writes into the run's folder, with whatever inputs the run has made."""
    clock = time.monotonic()
    job.events.write("step_started", step=job.step.name, resumed=False, pid=os.getpid())
    links = {name: job.folder / "steps" / name for name in job.step.inputs}
    inputs = {name: link.resolve() for name, link in links.items() if link.is_dir()}
    with note_written(job.folder, job.step, job.plan):
        job.step.run(_context(job, inputs, job.folder))
    job.events.write("step_finished", step=job.step.name, seconds=round(time.monotonic() - clock, 3))


def _inputs(job: Job) -> dict[str, Artifact]:
    found = {}
    for name in job.step.inputs:
        artifact = job.store.find(name, job.of(name)["key"])
        if not isinstance(artifact, Artifact):
            raise StepError(f"the input {name} is not in the store ({getattr(artifact, 'why', 'removed')}); run again")
        job.store.touch(artifact)
        found[name] = artifact
    return found


def _context(job: Job, inputs: Mapping[str, Path], output: Path) -> Context:
    return Context(
        config=job.assembly.view(job.step.reads),
        inputs=inputs,
        output=output,
        report=job.reporter,
        trust_remote_code=job.plan["trust_remote_code"] and job.assembly.trusts_remote_code,
        engine_arguments=tuple(job.plan["engine_arguments"]),
        processes=job.plan["processes"],
        sharding=job.plan["sharding"],
        nodes=Nodes(**job.plan["nodes"]),
        lock=job.store.locks / job.planned["artifact"] if job.step.cached else Path(),
        recipe_name=job.plan["name"],
        run_folder=job.folder,
    )


def _check_external(job: Job, when: str) -> None:
    """Raise StepError when something outside of recipe and store is not what the key was made with."""
    hashed = job.planned["hashed"]
    with remembering(job.store.digests):
        current = dict(job.step.external(job.assembly.view(job.step.reads)))
    if job.step.machine_bound and machine_key() != hashed.get("machine"):
        raise StepError("this machine or its engines are not those that the run was planned for; run again")
    for name in sorted(current.keys() | hashed["external"].keys()):
        if current.get(name) != hashed["external"].get(name):
            raise StepError(
                f"{name} changed {when} ({hashed['external'].get(name)} -> {current.get(name)}); nothing is published, "
                "run again to use it as it is now"
            )


def _end_on_signals() -> None:
    """Turn SIGTERM, which comes when the runner is gone too, into KeyboardInterrupt: `finally` blocks stop servers."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    end_with_the_runner()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--tied" in arguments:  # to the runner at the other end of standard input, as the local executor does
        arguments.remove("--tied")
        _end_on_signals()
    which = ""
    if "--node" in arguments[:-1]:
        place = arguments.index("--node")
        which = arguments.pop(place + 1)
        arguments.pop(place)
    if len(arguments) != 2:
        sys.exit("usage: python -m speculators.pipeline.work RUN_FOLDER STEP [--node NUMBER@HOST:PORT] [--tied]")
    sys.exit(main(Path(arguments[0]), arguments[1], which))
