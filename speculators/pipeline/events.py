"""`events.jsonl`: one object a line, appended by runner and workers, read by the live view, `status` and the report.

    run_started planned step_started progress metric message step_finished step_failed step_cached gate run_finished

Every line has `t`, `run` and `event`, and `step` where it is about one. A line is one `write` to a file opened with
O_APPEND, so lines of several processes never mix; the lock is for network file systems, where the end of the file may
be another one for every machine until it looks again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speculators.pipeline.manifest import now

Event = dict[str, Any]
_PROGRESS_SECONDS = 0.25


class EventLog:
    """Appends events of one process to a run's `events.jsonl`."""

    def __init__(self, path: Path, run: str) -> None:
        self._path, self._run = path, run

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; numbers that JSON does not have (nan, infinity) become null."""
        line = json.dumps({"t": now(), "run": self._run, "event": event, **_plain(fields)}, ensure_ascii=False)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)


class StepReporter:
    """A running step's voice (`pipeline.step.Reporter`); progress is thinned out to a few lines a second."""

    def __init__(self, log: EventLog, step: str) -> None:
        self._log, self._step = log, step
        self._last: tuple[float, str] = (-math.inf, "")

    def progress(self, done: int, total: int, unit: str) -> None:
        """`done` of `total` units are finished."""
        moment, (then, last_unit) = time.monotonic(), self._last
        if moment - then < _PROGRESS_SECONDS and unit == last_unit and done < total:
            return
        self._last = (moment, unit)
        self._log.write("progress", step=self._step, done=int(done), total=int(total), unit=unit)

    def metric(self, at: int, values: Mapping[str, float]) -> None:
        """Named figures at optimizer step, prompt or level `at`."""
        self._log.write("metric", step=self._step, at=int(at), values={name: float(v) for name, v in values.items()})

    def message(self, text: str) -> None:
        """One plain sentence for the user."""
        self._log.write("message", step=self._step, text=str(text))


class Aside(StepReporter):
    """The voice of a machine that does a part of a step which another one tells of: it says no more than messages."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Nothing: the parts of two machines would be taken for one thing that goes back and forth."""

    def metric(self, at: int, values: Mapping[str, float]) -> None:
        """Nothing."""


class EventTail:
    """Reads what was appended since the last look; a line still being written is left for the next look."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> Iterator[Event]:
        """The new events, in order."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                fresh = stream.read()
        except FileNotFoundError:
            return
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
