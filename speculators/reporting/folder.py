"""What a run left behind, read leniently: a step that failed, was killed or never started leaves gaps, not errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.errors import UsageError


@dataclass(frozen=True)
class RunFolder:
    """A folder `runs/<name>/<time>/`: the plan and the events as the runner wrote them, and the steps' artifacts."""

    path: Path
    plan: dict[str, Any]
    events: tuple[dict[str, Any], ...]

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read plan and events; raises UsageError where there is neither."""
        if not (path / "plan.json").is_file() and not (path / "events.jsonl").is_file():
            raise UsageError(f"{path} is not a run folder: it has neither plan.json nor events.jsonl")
        return cls(path.resolve(), _read_json(path / "plan.json") or {}, tuple(read_lines(path / "events.jsonl")))

    def artifact(self, step: str) -> Path | None:
        """The directory of a step's published artifact, or None while there is none."""
        place = self.path / "steps" / step
        return place.resolve() if place.is_dir() else None

    def file(self, step: str, name: str) -> Path | None:
        """A file of a step's artifact."""
        artifact = self.artifact(step)
        return artifact / name if artifact is not None and (artifact / name).is_file() else None

    def json(self, step: str, name: str) -> dict[str, Any]:
        """A JSON object of a step's artifact; empty where the step or the file is missing."""
        place = self.file(step, name)
        return (_read_json(place) or {}) if place else {}

    def run_json(self, name: str) -> dict[str, Any]:
        """A JSON object lying in the run folder itself; empty where it is missing."""
        return _read_json(self.path / name) or {}

    def text(self, *names: str) -> str | None:
        """The text of the first of these files that the run folder has."""
        for name in names:
            if (self.path / name).is_file():
                return (self.path / name).read_text(encoding="utf-8")
        return None


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line cut short by a crash is left out."""
    if path is None or not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
