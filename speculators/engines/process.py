"""A server as a process of its own: started, waited for until it is healthy, and always stopped with its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from speculators.engines.tied import GRACE_SECONDS
from speculators.errors import StepError

POLL_SECONDS = 0.1
LOG_LINES = 20
"""Of a server's log are shown when it fails."""


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    url_of: Callable[[str], str | None],
    *,
    environment: Mapping[str, str] | None = None,
    start_seconds: float = 600,
) -> Iterator[str]:
    """Run the server and give its base URL once `/health` answers; its output goes to `log`.

    `url_of` finds the URL in what was printed so far. Whatever happens inside, on SIGTERM, and even when we are killed,
    the server and all its children are stopped (`engines/tied.py`). Raises StepError, with the log's last lines, when
    the server ends by itself.
    """
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "speculators.engines.tied", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"},
        )
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield _wait_until_healthy(process, log, url_of, start_seconds)
        if process.poll() is not None:
            raise StepError(f"the server ended with code {process.returncode} while it was needed:\n{tail(log)}")
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(process)


def read(url: str, seconds: float = 10) -> str:
    """What a GET answers."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:  # noqa: S310 - our own server, or the user's endpoint
        text: str = answer.read().decode()
    return text


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])


def _wait_until_healthy(
    process: subprocess.Popen[bytes], log: Path, url_of: Callable[[str], str | None], seconds: float
) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StepError(f"the server ended with code {process.returncode} before it was ready:\n{tail(log)}")
        url = url_of(log.read_text(encoding="utf-8", errors="replace"))
        if url is not None:
            try:
                read(f"{url}/health")
            except (urllib.error.URLError, OSError):
                pass
            else:
                return url
        time.sleep(POLL_SECONDS)
    raise StepError(f"the server was not ready after {seconds:.0f} s:\n{tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None  # noqa: S101  it was started with a pipe
    process.stdin.close()
    try:
        process.wait(timeout=GRACE_SECONDS + 10)
    except subprocess.TimeoutExpired:
        process.kill()
