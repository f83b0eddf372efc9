"""What goes between the store and a remote one during a run: fetched before its steps start, pushed beside them.

The runner does both, and not the steps' own processes: no GPU is held while bytes travel, nodes of a cluster often have
no way out, and the credentials stay where they were given. The disk is the one that the steps share with the runner.
Where they share none, each machine fetches what it reads and pushes what it makes (`pipeline.apart`), and the runner
hands over and brings back what only it has, and what is wanted here.
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
from speculators.pipeline.manifest import Manifest, artifact_id
from speculators.pipeline.plan import Plan, Planned
from speculators.pipeline.remote import Moved, Remote, Stopped
from speculators.pipeline.store import Artifact, Damaged, Store

_LARGE = 10**7  # bytes

Stopping = Callable[[], bool]
"""Whether the run is to end."""


def fetch(plan: Plan, folder: RunFolder, stopping: Stopping) -> None:
    """Bring here what the plan takes from its remote store, but what is damaged there, which is not offered again.

    Raises MachineError where the store cannot be read: hours of work must not begin because a network failed for a
    minute. Raises Stopped when the run ends.
    """
    for name, offer in plan.to_fetch.items():
        assert plan.remote is not None  # noqa: S101  it made the offer
        _pull(plan.remote, offer, plan.store, StepReporter(folder.events, name), folder.id, stopping)


def hand_over(plan: Plan, step: Planned, folder: RunFolder, stopping: Stopping) -> set[str]:
    """Let the remote store have what a step on another machine reads, as far as it is here; which steps' it had not.

    Raises MachineError where the store cannot be written, Stopped when the run ends.
    """
    given = set()
    for name in step.step.inputs:
        artifact = plan.store.find(name, plan[name].key)
        if not isinstance(artifact, Artifact) or plan.stays(plan[name]):
            continue
        if push(plan, artifact, StepReporter(folder.events, step.name), stopping):
            given.add(name)
    return given


def take_over(plan: Plan, step: Planned, folder: RunFolder, stopping: Stopping) -> None:
    """Take what a step reads into the store of the machine that does it, whatever other instances lie there.

    Raises MachineError where the remote store cannot be read, Stopped when the run ends.
    """
    assert plan.remote is not None  # noqa: S101  machines have it in common
    reporter = StepReporter(folder.events, step.name)
    for offer in plan.remote.offers({name: plan[name].key for name in step.step.inputs}).values():
        if not _make_way(plan.store, offer, folder.id):
            _pull(plan.remote, offer, plan.store, reporter, folder.id, stopping)


def bring_back(plan: Plan, step: Planned, folder: RunFolder, stopping: Stopping) -> bool:
    """Take what a step on another machine has pushed into the store if it is wanted here; False: it is not there.

    Raises MachineError where the remote store cannot be read, Stopped when the run ends.
    """
    if plan.stays(step):
        return True
    assert plan.remote is not None  # noqa: S101  machines have it in common
    offer = plan.remote.offers({step.name: step.key}).get(step.name)
    if offer is None:
        return False
    if _make_way(plan.store, offer, folder.id) or not step.wanted_here:
        return True
    reporter = StepReporter(folder.events, step.name)
    return isinstance(_pull(plan.remote, offer, plan.store, reporter, folder.id, stopping), Artifact)


def _make_way(store: Store, offer: Manifest, run: str) -> bool:
    """Whether the store has the offered instance; another one, or a damaged one, is removed.

    Among machines that have the remote store in common, what is there is what a run has made; an older instance of the
    same key would be read by some of them, and handed over again by others.
    """
    name = artifact_id(offer.step, offer.key)
    with store.hold(name, run=run, waiting=lambda _: None):
        there = store.find(offer.step, offer.key)
        if isinstance(there, Artifact) and there.manifest.instance == offer.instance:
            return True
        if there is not None:
            store.discard(name)
    return False


def push(plan: Plan, artifact: Artifact, reporter: StepReporter, stopping: Stopping) -> bool:
    """Let the plan's remote store have this instance of an artifact; False: it has it already."""
    assert plan.remote is not None  # noqa: S101  it is what there is to push to
    clock, size = time.monotonic(), artifact.manifest.size
    if not plan.remote.push(artifact, _progress(reporter, size, stopping), replaces=True):
        return False
    took = time_text(time.monotonic() - clock)
    reporter.message(f"pushed {size_text(size)} of {artifact.manifest.step} to {plan.remote} in {took}")
    return True


def _pull(
    remote: Remote, offer: Manifest, store: Store, reporter: StepReporter, run: str, stopping: Stopping
) -> Artifact | Damaged:
    clock = time.monotonic()
    found = remote.pull(
        offer, store, run=run, waiting=reporter.message, moved=_progress(reporter, offer.size, stopping)
    )
    if isinstance(found, Artifact):
        took = time_text(time.monotonic() - clock)
        reporter.message(f"fetched {size_text(offer.size)} of {offer.step} from {remote} in {took}")
    return found


class Pushes:
    """Copies a run's artifacts to a remote store, one after the other, in a thread of its own.

    Where the store cannot be written no other is tried; whatever happens, the run goes on.
    """

    def __init__(self, remote: Remote | None, plan: Plan, events: EventLog, stopping: Stopping) -> None:
        """`remote` None: nothing is pushed. Nor is what means nothing elsewhere, or is not kept here either."""
        self._remote, self._events, self._stopping = remote, events, stopping
        let_go = {name for planned in plan.steps for name in planned.step.releases}
        stays = {one.name for one in plan.steps if plan.stays(one)}
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
