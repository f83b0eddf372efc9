"""Locks between processes: the kernel drops them when their holder dies, so there is nothing to unlock by hand."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from speculators.errors import MachineError
from speculators.pipeline.manifest import now

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def hold(place: Path, *, run: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock `place` inside the block, waiting as long as another process has it.

    `waiting` is told once who holds it. The file stays: deleting a lock file lets two processes hold "the" lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting(holder(place))
        lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        note = {"pid": os.getpid(), "host": platform.node(), "since": now(), "run": run}
        _holder_file(place).write_text(json.dumps(note), encoding="utf-8")
        yield
    finally:
        _holder_file(place).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def try_hold(place: Path) -> Iterator[bool]:
    """Hold the lock `place` inside the block if nobody else does; False: somebody does."""
    from filelock import FileLock, Timeout

    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def holder(place: Path) -> str:
    """Who holds the lock, in words."""
    try:
        note = json.loads(_holder_file(place).read_text(encoding="utf-8"))
        since = datetime.fromisoformat(note["since"].replace("Z", "+00:00")).astimezone()
        return f"pid {note['pid']} on {note['host']}, which started the same work at {since:%H:%M:%S}"
    except (OSError, ValueError, KeyError):
        return "another process, which does the same work"


def check_locks_work(folder: Path) -> None:
    """Raise MachineError where the file system has no working `flock`: two runs could corrupt the store."""
    import fcntl

    probe = folder / f".flock-{os.getpid()}"
    try:
        with probe.open("w") as first, probe.open("w") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
        raise MachineError(f"locks do not exclude each other on the file system of {folder}; put --store elsewhere")
    except OSError as error:
        raise MachineError(f"no locks on the file system of {folder} ({error}); put --store elsewhere") from error
    finally:
        probe.unlink(missing_ok=True)


def _holder_file(place: Path) -> Path:
    # Beside the lock, not inside it: some versions of filelock cut the lock file when they open it.
    return place.with_name(f"{place.name}.holder")
