"""Our server as a process of its own for a measurement, on a free port, warmed up."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from speculators.engines.process import Launch, read, running


@contextmanager
def served(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Run `speculators serve` with `arguments` on a free loopback port; gives the base URL once it is healthy."""
    command = [sys.executable, "-m", "speculators", "serve", *arguments, "--host", "127.0.0.1", "--port", "0"]
    with running([Launch(command, log, _announced)]) as (url,):
        yield url


def read_metrics(base_url: str) -> str:
    """The text of the server's `/metrics`."""
    return read(f"{base_url}/metrics")


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


def _announced(printed: str) -> str | None:
    for line in printed.splitlines():
        if line.startswith("serving ") and line.endswith("/v1"):
            return line.rsplit(" ", 1)[1].removesuffix("/v1")
    return None
