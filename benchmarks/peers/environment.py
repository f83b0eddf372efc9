"""A peer's own Python environment in the user's cache, built once by pip as the user has configured it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

CONSTRAINTS = Path(__file__).parents[2] / "constraints-cpu.txt"
PROGRAMS = Path(__file__).parent


class PeerUnavailable(Exception):
    """Why a peer cannot be measured here, in a line."""


def build(name: str, version: str, unused: tuple[str, ...] = ()) -> Path:
    """The interpreter of an environment that has `name==version` from the package index.

    Without a GPU its PyTorch is the project's CPU build; `unused` are dependencies that are then taken away again,
    because the index has them for GPUs only and importing them fails. Raises PeerUnavailable with pip's last line.
    """
    place = platformdirs.user_cache_path("speculators") / "peers" / f"{name}-{version}"
    python, done = place / "bin" / "python", place / "complete"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if done.exists():
            return python
        shutil.rmtree(place, ignore_errors=True)
        print(f"building {place}", file=sys.stderr)
        _checked([sys.executable, "-m", "venv", str(place)])
        pip = [str(python), "-m", "pip", "--quiet"]
        if shutil.which("nvidia-smi"):
            _checked([*pip, "install", f"{name}=={version}"])
        else:
            torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
            _checked([*pip, "install", f"{name}=={version}", torch])
            if unused:
                _checked([*pip, "uninstall", "--yes", *unused])
        done.touch()
    return python


def run(python: Path, program: str, *arguments: str, folder: Path, path: Sequence[Path] = ()) -> dict[str, Any]:
    """What one of this folder's programs prints last, as JSON; it runs in `folder`, a process of its own.

    `path` is where it finds our packages. Without it the program sees its own environment alone: a peer's package may
    have our name. Raises PeerUnavailable with the program's last line.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    printed = _checked([str(python), "-s", str(PROGRAMS / program), *arguments], folder, environment)
    found: dict[str, Any] = json.loads(printed[-1])
    return found


def _checked(command: list[str], folder: Path | None = None, environment: dict[str, str] | None = None) -> list[str]:
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = [line for line in answer.stderr.splitlines() if line.strip()] or [f"exit {answer.returncode}"]
        raise PeerUnavailable(re.sub(r"\s+", " ", said[-1]).strip())
    return answer.stdout.splitlines()
