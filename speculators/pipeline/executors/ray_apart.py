"""A step as a task of a Ray node that shares no disk with the runner: its files go through a remote store.

What the step tells goes through Ray: an actor on the runner's node writes it into the run's folder, where it would
stand if the disk were shared.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speculators.pipeline.events import Event, EventLog, EventTail
from speculators.pipeline.executors.base import Work
from speculators.pipeline.executors.node import OnNode
from speculators.pipeline.folder import RunFolder, previous_run, read_plan
from speculators.pipeline.remote import VARIABLE

_OF_THE_STEP = ("step_started", "metric", "step_finished", "step_cached")
_OF_ALL = ("progress", "message")
_STAMPS = ("t", "run", "event", "step")


class Ear:
    """On the runner's node: writes down what a step on another one tells."""

    def hear(self, folder: str, step: str, events: list[Event], log: bytes) -> None:
        """Add to the events and the step's log in the run's folder."""
        run = Path(folder)
        told = EventLog(run / "events.jsonl", read_plan(run)["run"])
        for event in events:
            told.write(event["event"], step=step, **{name: event[name] for name in event if name not in _STAMPS})
        if log:
            with (run / "logs" / f"{step}.log").open("ab") as stream:
                stream.write(log)


def ear(ray: Any) -> Any:
    """An `Ear` on the node from which this is called, which ends with its caller."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Ear).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class Errand:
    """What a node must know: the plan of the run, as text, the run's folder where the runner is, and the remote URL."""

    plan: str
    folder: str
    url: str

    @classmethod
    def of(cls, work: Work, url: str) -> Errand:
        """The errand for a step of a run whose folder is here."""
        folder = work.log.parents[1]
        return cls((folder / "plan.json").read_text(encoding="utf-8"), str(folder), url)


def run_apart(work: Work, errand: Errand, told: Any, grace: float) -> int:
    """Run a step with this node's Python, disk and store; cancelling the task lets it save its state.

    `told` is the runner's `Ear`. The exit status.
    """
    import ray

    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, for the one CPU that is asked for where nothing was said
    with tempfile.TemporaryDirectory(prefix="speculators-") as place:
        folder = Path(place)
        (folder / "plan.json").write_text(errand.plan, encoding="utf-8")
        argv = (sys.executable, "-m", "speculators.pipeline.apart", place, work.step, str(grace))
        own = replace(
            work, argv=argv, log=folder / "said.log", environment={**_without_store(work), VARIABLE: errand.url}
        )
        running, sending = OnNode(own, None, grace), _Sending(folder, work.step, errand.folder, told)
        try:
            while not running.has_ended():
                sending.send()
            status = running.wait()
        except KeyboardInterrupt:  # how Ray cancels
            status = running.stop()
        sending.send()
        sending.close()
        with contextlib.suppress(ray.exceptions.RayError):  # the step has ended as it has, heard of or not
            ray.get(sending.sent)
        return status


def _without_store(work: Work) -> Mapping[str, str]:
    """The step's variables; which store it uses is the node's own affair."""
    return {name: value for name, value in work.environment.items() if name != "SPECULATORS_STORE"}


class _Sending:
    """Sends what was written since the last time."""

    def __init__(self, folder: Path, step: str, run: str, told: Any) -> None:
        self._folder, self._step, self._run, self._told = folder, step, run, told
        self._name = read_plan(folder)["name"]
        self._events: EventTail | None = None
        self._log: Path | None = None
        self._at = 0
        self.sent: list[Any] = []

    def send(self) -> None:
        """Send new events, those of inputs as the step's own, and what the log has more."""
        if self._events is None:
            if (path := previous_run(self._folder / "runs", self._name)) is None:
                return
            there = RunFolder(path, "")
            self._events, self._log = EventTail(there.events_file), there.log(self._step)
        self._send([event for event in self._events.read() if self._is_told(event)], self._more())

    def close(self) -> None:
        """Send what was said outside of the step's log, as its last paragraph."""
        said = self._folder / "said.log"
        text = said.read_bytes().strip() if said.is_file() else b""
        if text:
            self._send([], b"\n\n" + text + b"\n")

    def _is_told(self, event: Event) -> bool:
        return event["event"] in _OF_ALL or (event["event"] in _OF_THE_STEP and event["step"] == self._step)

    def _more(self) -> bytes:
        if self._log is None or not self._log.is_file():
            return b""
        with self._log.open("rb") as stream:
            stream.seek(self._at)
            more = stream.read()
        self._at += len(more)
        return more

    def _send(self, events: list[Event], log: bytes) -> None:
        if events or log:
            self.sent = [self._told.hear.remote(self._run, self._step, events, log)]
