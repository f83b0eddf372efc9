"""Servers as processes of their own: started, waited for until healthy, and always stopped with their children."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from speculators.engines.tied import GRACE_SECONDS
from speculators.errors import StepError

POLL_SECONDS = 0.1
_ERROR = re.compile(r"\b[\w.]*(?:Error|Exception): .+")
LOG_LINES = 20
"""Of a server's log are shown when it fails."""


@dataclass(frozen=True)
class Launch:
    """A server to start: `url_of` finds its base URL in what it has printed, its output goes to `log`."""

    command: Sequence[str]
    log: Path
    url_of: Callable[[str], str | None]
    environment: Mapping[str, str] | None = None


@contextmanager
def running(launches: Sequence[Launch], *, start_seconds: float = 600) -> Iterator[list[str]]:
    """Run servers side by side and give their base URLs once `/health` answers at each.

    Whatever happens inside, on SIGTERM, and even when we are killed, the servers and all their children are stopped
    (`engines/tied.py`). Raises StepError, with the log's last lines, when one of them ends by itself, also in place of
    whatever error followed from that.
    """
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.extend(_start(launch) for launch in launches)
        deadline, both = time.monotonic() + start_seconds, list(zip(processes, launches, strict=True))
        urls = [_wait_until_healthy(process, launch, deadline) for process, launch in both]
        try:
            yield urls
        except Exception as error:
            time.sleep(POLL_SECONDS)  # a connection breaks a moment before its server has ended
            _check(both, error)
            raise
        _check(both)
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(processes)


def read(url: str, seconds: float = 10) -> str:
    """What a GET answers."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:  # noqa: S310 - our own server, or the user's endpoint
        text: str = answer.read().decode()
    return text


def failure(what: str, log: Path) -> StepError:
    """An error that shows the end of a server's log, and last of all `what` with the line of the log that tells most.

    That is the first error which the log names, or else its last line.
    """
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = (found[0] for line in lines if " WARNING " not in line and (found := _ERROR.search(line)))
    telling = next(errors, lines[-1] if lines else "it printed nothing")
    return StepError("\n".join([*lines[-LOG_LINES:], "", f"{what}: {telling}"]))


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    with launch.log.open("w", encoding="utf-8") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "speculators.engines.tied", *launch.command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**(os.environ if launch.environment is None else launch.environment), "PYTHONUNBUFFERED": "1"},
        )


def _wait_until_healthy(process: subprocess.Popen[bytes], launch: Launch, deadline: float) -> str:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise failure(f"the server ended with code {process.returncode} before it was ready", launch.log)
        url = launch.url_of(launch.log.read_text(encoding="utf-8", errors="replace"))
        if url is not None:
            try:
                read(f"{url}/health")
            except (urllib.error.URLError, OSError):
                pass
            else:
                return url
        time.sleep(POLL_SECONDS)
    raise failure("the server was not ready in time", launch.log)


def _check(servers: Sequence[tuple[subprocess.Popen[bytes], Launch]], cause: Exception | None = None) -> None:
    for process, launch in servers:
        if process.poll() is not None:
            raise failure(f"the server ended with code {process.returncode} while it was needed", launch.log) from cause


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdin is not None  # noqa: S101  it was started with a pipe
        process.stdin.close()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_SECONDS + 10)
        process.kill()
