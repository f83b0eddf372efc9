"""A run's folder: `runs/<name>/<time>-<id>/`, everything about one run that is not an artifact.

    recipe.yaml recipe.resolved.yaml plan.json environment.json    written before anything runs
    events.jsonl logs/STEP.log steps/STEP -> artifact              while it runs
    results.json report.html                                       at the end

`plan.json` is all that a worker needs. `latest`, beside the folder, leads to the newest run.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from speculators import __version__
from speculators.errors import StepError, UsageError
from speculators.pipeline.events import EventLog
from speculators.pipeline.machine import environment
from speculators.pipeline.manifest import folder_name
from speculators.pipeline.plan import Plan, Planned
from speculators.pipeline.step import ONE_NODE, Nodes

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""The variables that keep libraries from the network where the command line did not allow it."""


@dataclass(frozen=True)
class Consent:
    """What the command line allowed, what it hands on to an engine of its own, and which processes train."""

    offline: bool = False
    trust_remote_code: bool = False
    engine_arguments: tuple[str, ...] = ()
    processes: int = 1
    sharding: str = "none"
    nodes: Nodes = ONE_NODE
    anyway: bool = False
    """Whether steps run although estimates say that disk or memory will not do."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the run's id."""

    path: Path
    id: str

    @property
    def events_file(self) -> Path:
        """Where the events are."""
        return self.path / "events.jsonl"

    @property
    def events(self) -> EventLog:
        """To append events with."""
        return EventLog(self.events_file, self.id)

    def log(self, step: str) -> Path:
        """The file with a step's whole output."""
        return self.path / "logs" / f"{step}.log"

    def link(self, step: str, artifact: Path) -> None:
        """Let `steps/STEP` lead to the step's artifact."""
        _link(self.path / "steps" / step, artifact)

    def unlink(self, step: str) -> None:
        """Take the link away, as its artifact has gone."""
        (self.path / "steps" / step).unlink(missing_ok=True)


def create_run(runs: Path, plan: Plan, *, consent: Consent, texts: Mapping[str, str]) -> RunFolder:
    """Make the folder of a new run with its plan; `texts` are further files, such as `recipe.yaml`.

    Raises UsageError when the folder cannot be made.
    """
    above = runs.absolute() / folder_name(plan.assembly.name)
    try:
        folder = _unused(above)
        (folder.path / "logs").mkdir()
        (folder.path / "steps").mkdir()
    except OSError as error:
        raise UsageError(f"no run folder can be made in {above}: {error.strerror}; give another --runs") from error
    for name, text in texts.items():
        (folder.path / name).write_text(text, encoding="utf-8")
    _write_json(folder.path / "plan.json", plan_json(plan, folder.id, consent))
    _write_json(folder.path / "environment.json", environment())
    folder.events_file.touch()
    _link(above / "latest", Path(folder.path.name))
    return folder


def write_plan_again(folder: RunFolder, plan: Plan) -> None:
    """Put a newer plan of the same run into its folder; call it while nothing runs."""
    before = read_plan(folder.path)
    _write_json(folder.path / "plan.json", {**before, "steps": [step_json(planned) for planned in plan.steps]})


def plan_json(plan: Plan, run: str, consent: Consent) -> dict[str, Any]:
    """The plan as plain data: for the worker, for `plan --json`, and for whoever reads a run folder later."""
    return {
        "speculators": __version__,
        "run": run,
        "name": plan.assembly.name,
        "store": str(plan.store.root),
        "reassemble": plan.assembly.reassemble,
        "offline": consent.offline,
        "trust_remote_code": consent.trust_remote_code,
        "engine_arguments": list(consent.engine_arguments),
        "processes": consent.processes,
        "sharding": consent.sharding,
        "nodes": asdict(consent.nodes),
        "anyway": consent.anyway,
        "recipe": plan.assembly.data,
        "steps": [step_json(planned) for planned in plan.steps],
    }


def step_json(planned: Planned) -> dict[str, Any]:
    """One step of the plan as plain data."""
    return {
        "name": planned.name,
        "state": planned.state,
        "reason": planned.why.reason.value if planned.why else None,
        "why": planned.why.text if planned.why else None,
        "inputs": list(planned.step.inputs),
        "artifact": planned.id if planned.step.cached else None,
        "key": planned.key,
        "hashed": planned.hashed,
        "replaces": planned.replaces,
        "fetch": planned.offer.size if planned.offer and planned.wanted_here else None,
        "estimate": {
            "disk": planned.estimate.disk,
            "memory": planned.estimate.memory,
            "seconds": planned.estimate.seconds,
            "model_seconds": planned.model_seconds,
        },
    }


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of a run; raises UsageError where there is none, StepError for one that another version wrote."""
    try:
        plan: dict[str, Any] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} is not a run folder: {error}") from error
    if plan.get("speculators") != __version__:
        raise StepError(f"the plan was written by speculators {plan.get('speculators')}, this is {__version__}")
    return plan


def previous_run(runs: Path, name: str) -> Path | None:
    """The newest run of a recipe, if there is one."""
    latest = runs.absolute() / folder_name(name) / "latest"
    return latest.resolve() if (latest / "plan.json").is_file() else None


def _unused(above: Path) -> RunFolder:
    above.mkdir(parents=True, exist_ok=True)
    while True:
        run = secrets.token_hex(2)
        path = above / f"{datetime.now().astimezone():%Y-%m-%dT%H-%M-%S}-{run}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return RunFolder(path, run)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _link(place: Path, target: Path) -> None:
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(place)
