"""What happens on the node of a cluster: it is looked at, and a step's command runs on it.

Nothing here knows the cluster.
"""

from __future__ import annotations

import platform
import threading
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from speculators.errors import MachineError
from speculators.pipeline.executors.base import Work, explain
from speculators.pipeline.executors.local import LocalExecutor

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Shared:
    """The store as the runner's machine sees it, to tell it from another folder of the same name on another disk."""

    store: Path
    made: int

    @classmethod
    def of(cls, store: Path) -> Shared:
        """The store as it is seen here."""
        return cls(store, int((store / "store.json").stat().st_mtime))

    def difference(self) -> str | None:
        """What is wrong when a node of the cluster does not see the same; None: nothing."""
        try:
            same = Shared.of(self.store) == self
        except OSError:
            same = False
        if same:
            return None
        return (
            f"{platform.node()} does not see the store {self.store} (--store, SPECULATORS_STORE) that the run uses; "
            "it must lie on a disk that all machines share, and so must --runs"
        )


class OnNode:
    """A step's command as it runs on this node, in a thread, so that whoever waits for it can be interrupted."""

    def __init__(self, work: Work, shared: Shared | None, grace: float) -> None:
        """Start it; a node that does not see the store `shared` says so in the step's log instead."""
        self._local = LocalExecutor(grace)
        self._status: Future[int] = Future()
        threading.Thread(target=self._run, args=(work, shared), daemon=True).start()

    def has_ended(self, seconds: float = _LOOK_SECONDS) -> bool:
        """Wait that long for the end; whether it has come."""
        futures.wait([self._status], timeout=seconds)
        return self._status.done()

    def wait(self) -> int:
        """Wait for the end; the exit status."""
        while not self.has_ended():
            pass
        return self._status.result()

    def stop(self) -> int:
        """Let it save its state, kill it after the grace, and wait for the end; the exit status."""
        self._local.stop()
        return self.wait()

    def _run(self, work: Work, shared: Shared | None) -> None:
        try:
            wrong = shared.difference() if shared else None
            if wrong is None:
                self._status.set_result(self._local.run(work))
            else:
                work.log.parent.mkdir(parents=True, exist_ok=True)
                explain(work.log, wrong)
                self._status.set_result(MachineError.exit_code)
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            self._status.set_exception(error)
