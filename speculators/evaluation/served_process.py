"""Our server as a process of its own for a measurement: started on a free port, waited for, always stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from speculators.errors import StepError

START_SECONDS = 600
POLL_SECONDS = 0.1
STOP_SECONDS = 10


@contextmanager
def served(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Run `speculators serve` with `arguments` on a free loopback port; gives the base URL once it is healthy.

    The server's output goes to `log`. Whatever happens inside, and on SIGTERM to us, its whole process group is
    stopped. Raises StepError, with the log's last lines, when it ends before it is ready.
    """
    command = [sys.executable, "-m", "speculators", "serve", *arguments, "--host", "127.0.0.1", "--port", "0"]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield _wait_until_healthy(process, log)
        if process.poll() is not None:
            raise StepError(f"the server ended with code {process.returncode} while it was measured:\n{_tail(log)}")
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(process)


def read_metrics(base_url: str) -> str:
    """The text of the server's `/metrics`."""
    return _get(f"{base_url}/metrics")


def warm_up(base_url: str, model: str, max_tokens: int) -> None:
    """One request before the measured ones: first passes allocate."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": max_tokens}
    request = urllib.request.Request(  # noqa: S310 - always our own loopback server
        f"{base_url}/v1/chat/completions",
        data=json.dumps({**body, "temperature": 0.0}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
        answer.read()


def _wait_until_healthy(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StepError(f"the server ended with code {process.returncode} before it was ready:\n{_tail(log)}")
        url = _announced(log)
        if url is not None:
            try:
                _get(f"{url}/health")
            except (urllib.error.URLError, OSError):
                pass
            else:
                return url
        time.sleep(POLL_SECONDS)
    raise StepError(f"the server was not ready after {START_SECONDS} s:\n{_tail(log)}")


def _announced(log: Path) -> str | None:
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("serving ") and line.endswith("/v1"):
            return line.rsplit(" ", 1)[1].removesuffix("/v1")
    return None


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - always our own loopback server
        text: str = answer.read().decode()
    return text


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
