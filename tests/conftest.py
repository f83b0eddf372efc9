"""Every test starts from the same seed and never reaches the network; and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture
def start() -> Any:
    """Starts `speculators ARGUMENTS` in `folder` and gives the process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, folder: Path, store: Path | None = None) -> subprocess.Popen[str]:
        environment = {**os.environ, "NO_COLOR": "1"}
        if store is not None:
            environment["SPECULATORS_STORE"] = str(store)
        environment.setdefault("SPECULATORS_STORE", str(folder / "store"))
        process = subprocess.Popen(
            [sys.executable, "-m", "speculators", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def speculators(start: Any) -> Command:
    """Runs `speculators ARGUMENTS` in `folder` to its end; `stdout` has all that it printed."""

    def run(
        *arguments: str, folder: Path, store: Path | None = None, timeout: int = 300
    ) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, folder=folder, store=store)
        printed, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, printed, "")

    return run


@pytest.fixture
def results() -> Callable[[Path, str], dict[str, Any]]:
    """The latest run's results.json."""

    def read(folder: Path, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "runs" / name / "latest" / "results.json").read_text())
        return found

    return read


@pytest.fixture
def steps() -> tuple[str, ...]:
    """Every step of a whole recipe that leaves an artifact, in order."""
    return (
        *("verifier", "prompts", "answers", "tokens", "vocabulary", "hidden_states", "train"),
        *("checkpoint", "acceptance", "benchmark-dense", "benchmark-speculator"),
    )
