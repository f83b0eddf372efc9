"""Starts a training's processes, tells what the first one reports, and leaves none of them behind.

Each is `python -m speculators.training.rank` with the same assignment and a number. They hold the reading end of a
pipe and end when it closes, however we ended; when one of them ends before its time, the others are killed.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch

from speculators.engines.process import failure
from speculators.errors import INTERRUPTED, MachineError
from speculators.pipeline.events import EventTail
from speculators.pipeline.machine import cores
from speculators.pipeline.step import Reporter
from speculators.training.rank import ASSIGNMENT, EVENTS, LOST, Assignment
from speculators.training.trackers import Tracker

_POLL_SECONDS = 0.05
_CULPRIT_SECONDS = 5.0
"""For a process that ended by itself to be found, when the first to be seen only missed it."""


def train_together(assignment: Assignment, count: int, total: int, report: Reporter, tracker: Tracker | None) -> None:
    """Train with `count` processes of this machine, of `total` on all, each on a GPU of its own where there are GPUs.

    Raises MachineError when there are fewer GPUs, StepError with its last lines when a process fails, and lets all of
    them save before KeyboardInterrupt goes on.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise MachineError(
            f"--processes {count}: only {torch.cuda.device_count()} GPUs are there, one for each is needed"
        )
    with TemporaryDirectory(prefix="speculators-ranks-") as place:
        folder = Path(place)
        (folder / ASSIGNMENT).write_bytes(msgspec.json.encode(assignment))
        numbers = range(assignment.first, assignment.first + count)
        with _running(folder, numbers, total) as processes:
            tail = EventTail(folder / EVENTS)
            try:
                statuses = _follow(processes, lambda: _tell(tail, report, tracker))
                _judge(folder, dict(zip(numbers, statuses, strict=True)), total)
            except KeyboardInterrupt:
                _ask_to_stop(processes)
                raise


@contextmanager
def _running(folder: Path, numbers: range, total: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes, killed at the end; what they printed is then printed here."""
    reading, writing = os.pipe()
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // len(numbers))), **os.environ}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in numbers:
            command = [sys.executable, "-m", "speculators.training.rank", str(folder), str(number), str(total)]
            with _log(folder, number).open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=reading,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,  # who asks us to stop does not ask them: we do, once
                    )
                )
        yield processes
    finally:
        os.close(writing)
        os.close(reading)
        for process in processes:
            process.kill()
            process.wait()
        for number in numbers[: len(processes)]:
            for line in _log(folder, number).read_text(encoding="utf-8", errors="replace").splitlines():
                print(f"[{number}] {line}", flush=True)


def _follow(processes: Sequence[subprocess.Popen[bytes]], tell: Callable[[], None]) -> list[int | None]:
    """Wait until all have ended, or one has failed by itself; their exit statuses, None for those that still run."""
    deadline = math.inf
    while True:
        statuses = [process.poll() for process in processes]
        tell()
        if None not in statuses or any(map(_is_own_failure, statuses)) or time.monotonic() > deadline:
            return statuses
        if any(statuses):
            deadline = min(deadline, time.monotonic() + _CULPRIT_SECONDS)
        time.sleep(_POLL_SECONDS)


def _is_own_failure(status: int | None) -> bool:
    return status not in (None, 0, LOST, INTERRUPTED)


def _ask_to_stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()  # whoever is tired of waiting kills us, and the pipe them


def _tell(tail: EventTail, report: Reporter, tracker: Tracker | None) -> None:
    """Pass on what the first process has reported since the last look."""
    for event in tail.read():
        if event["event"] == "progress":
            report.progress(event["done"], event["total"], event["unit"])
        elif event["event"] == "metric":
            values = {name: math.nan if value is None else value for name, value in event["values"].items()}
            report.metric(event["at"], values)
            if tracker is not None:
                tracker.log(event["at"], values)
        else:
            report.message(event["text"])


def _judge(folder: Path, found: Mapping[int, int | None], total: int) -> None:
    """Raise what a process ended by: one that failed by itself rather than one that missed another."""
    if not any(found.values()):
        return
    own = [number for number, status in found.items() if _is_own_failure(status)]
    if not own and INTERRUPTED in found.values():
        raise KeyboardInterrupt
    number = own[0] if own else next(number for number, status in found.items() if status == LOST)
    status = found[number] or 0
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with code {status}"
    error = failure(f"process {number} of the {total} that train ended {how}", _log(folder, number))
    raise MachineError(str(error)) if status == MachineError.exit_code else error


def _log(folder: Path, number: int) -> Path:
    return folder / f"rank-{number}.log"
