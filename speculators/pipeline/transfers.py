"""What goes between the store and a remote one during a run: fetched before its steps start, pushed beside them.

The runner does both, and not the steps' own processes: no GPU is held while bytes travel, nodes of a cluster often have
no way out, and the credentials stay where they were given. The disk is the one that the steps share with the runner.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from speculators.amounts import size_text, time_text
from speculators.errors import SpeculatorsError, StepError
from speculators.pipeline.events import EventLog, StepReporter
from speculators.pipeline.folder import RunFolder
from speculators.pipeline.plan import Plan
from speculators.pipeline.remote import Moved, Remote, Stopped
from speculators.pipeline.store import Artifact

_LARGE = 10**7  # bytes

Stopping = Callable[[], bool]
"""Whether the run is to end."""


def fetch(plan: Plan, folder: RunFolder, stopping: Stopping) -> None:
    """Bring here what the plan takes from its remote store, but what is damaged there, which is not offered again.

    Raises MachineError where the store cannot be read: hours of work must not begin because a network failed for a
    minute. Raises Stopped when the run ends.
    """
    for name, offer in plan.to_fetch.items():
        reporter, clock = StepReporter(folder.events, name), time.monotonic()
        assert plan.remote is not None  # noqa: S101  it made the offer
        found = plan.remote.pull(
            offer, plan.store, run=folder.id, waiting=reporter.message, moved=_progress(reporter, offer.size, stopping)
        )
        if isinstance(found, Artifact):
            reporter.message(
                f"fetched {size_text(offer.size)} from {plan.remote} in {time_text(time.monotonic() - clock)}"
            )


class Pushes:
    """Copies a run's artifacts to a remote store, one after the other, in a thread of its own.

    Where the store cannot be written no other is tried; whatever happens, the run goes on.
    """

    def __init__(self, remote: Remote | None, plan: Plan, events: EventLog, stopping: Stopping) -> None:
        """`remote` None: nothing is pushed. Nor is what means nothing elsewhere, or is not kept here either."""
        self._remote, self._events, self._stopping = remote, events, stopping
        let_go = {name for planned in plan.steps for name in planned.step.releases}
        stays = {one.name for one in plan.steps if one.step.stays(plan.assembly.view(one.step.reads))}
        self._not_these = let_go | stays
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._doing: list[Future[None]] = []
        self._left: list[str] = []
        self._why = ""
        self._over = False

    def add(self, step: str, artifact: Artifact) -> None:
        """Push it as soon as those before it are done."""
        if self._remote is not None and step not in self._not_these:
            self._doing.append(self._thread.submit(self._push, self._remote, step, artifact))

    def finish(self) -> None:
        """Wait for all of them, and tell which could not be pushed."""
        if waiting := sum(not one.done() for one in self._doing):
            self._events.write("message", text=f"waiting for {waiting} artifacts to be pushed to {self._remote}")
        self._thread.shutdown()
        if self._left:
            what = " ".join(self._left)
            later = f"`speculators cache push --remote {self._remote} {what}` does it later"
            self._events.write("message", text=f"{self._why}; {later}")

    def _push(self, remote: Remote, step: str, artifact: Artifact) -> None:
        clock = time.monotonic()
        try:
            self._watch(0)
            if remote.push(artifact, self._watch):
                told = (
                    f"pushed {size_text(artifact.manifest.size)} to {remote} in {time_text(time.monotonic() - clock)}"
                )
                self._events.write("message", step=step, text=told)
        except (Stopped, SpeculatorsError) as error:
            self._over = self._over or not isinstance(error, StepError)
            self._why = self._why or str(error) or f"{remote} did not get all that this run has"
            self._left.append(artifact.path.name)

    def _watch(self, size: int) -> None:
        if self._over or self._stopping():
            raise Stopped


def _progress(reporter: StepReporter, total: int, stopping: Stopping) -> Moved:
    """Tells how far a large fetch has come."""
    done, lock = 0, threading.Lock()

    def moved(size: int) -> None:
        nonlocal done
        if stopping():
            raise Stopped
        with lock:
            done += size
            if total >= _LARGE:
                reporter.progress(done // 10**6, total // 10**6, "MB")

    return moved
