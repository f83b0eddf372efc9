"""What a step that is never cached wrote into a run's folder, so that the next run of the very same things may copy it.

The report is drawn from the recipe, the artifacts and the environment. When nothing of these is new, drawing it again
would give the same page at the price of importing the drawing library.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speculators.pipeline.digests import value_sha256
from speculators.pipeline.manifest import Manifest
from speculators.pipeline.step import Step

_NOTE = "written.json"
_OTHERS = ("logs/", "steps/", "events.jsonl", _NOTE)


@contextlib.contextmanager
def note_written(folder: Path, step: Step, plan: Mapping[str, Any]) -> Iterator[None]:
    """Note in `written.json` which files of the run's folder the block wrote, and for what."""
    before = _files(folder)
    yield
    written = sorted(name for name, state in _files(folder).items() if before.get(name) != state)
    note = {**_read(folder), step.name: {"identity": identity(folder, step, plan), "files": written}}
    (folder / _NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def carry_over(previous: Path, folder: Path, step: Step, plan: Mapping[str, Any]) -> bool:
    """Copy what `step` wrote in the `previous` run, if it was made from the very same things; False: it was not."""
    note = _read(previous).get(step.name) or {}
    files = [previous / name for name in note.get("files") or ()]
    if note.get("identity") != identity(folder, step, plan) or not files or not all(file.is_file() for file in files):
        return False
    for file in files:
        target = folder / file.relative_to(previous)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (folder / _NOTE).write_text(json.dumps({**_read(folder), step.name: note}, indent=1) + "\n", encoding="utf-8")
    return True


def identity(folder: Path, step: Step, plan: Mapping[str, Any]) -> str:
    """The digest of all that the step can see of a run: plan, recipe, environment and the artifacts' contents."""
    texts = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("recipe.yaml", "recipe.resolved.yaml", "environment.json")
        if (folder / name).is_file()
    }
    contents = {planned["name"]: _instance(folder / "steps" / planned["name"]) for planned in plan["steps"]}
    keys = {planned["name"]: planned["key"] for planned in plan["steps"]}
    return value_sha256([step.name, step.version, plan["speculators"], texts, contents, keys])


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(_OTHERS) and path.is_file() and not path.is_symlink():
            stat = path.stat()
            found[name] = (stat.st_mtime_ns, stat.st_size)
    return found


def _instance(artifact: Path) -> str | None:
    try:
        return Manifest.read(artifact).instance
    except ValueError:
        return None


def _read(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
