"""Why a step must run, found by comparing what is hashed now with what an earlier artifact was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from speculators.pipeline.store import Artifact

_SHOWN = 24  # characters of a value
_ALIKE = 3  # differences up to which another recipe's artifact says anything about this one


class Reason(str, Enum):
    """Every reason there is; `Why.text` says it with its particulars."""

    NEW = "new"
    CONFIG_CHANGED = "config changed"
    INPUT_CHANGED = "input changed"
    INPUT_REBUILT = "input rebuilt"
    EXTERNAL_CHANGED = "external changed"
    MACHINE_CHANGED = "machine changed"
    STEP_VERSION = "step version"
    MISSING = "missing"
    DAMAGED = "damaged"
    FORCED = "forced"
    NEVER_CACHED = "always"


@dataclass(frozen=True)
class Why:
    """A reason and its particulars."""

    reason: Reason
    text: str


@dataclass(frozen=True)
class Change:
    """One difference between two hashed objects: its dotted place, and both values (None: absent)."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """All differences between two plain mappings, leaf by leaf, in the order of their paths."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    paths = sorted(before.keys() | after.keys())
    return [Change(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def why_missing(hashed: Mapping[str, Any], history: list[Artifact], recipe: str) -> Why:
    """Why there is no artifact for `hashed`: compared with the newest of the same step, this recipe's own first."""
    if not history:
        return Why(Reason.NEW, "new")
    own = next((artifact for artifact in history if artifact.manifest.recipe == recipe), None)
    old = (own or history[0]).manifest.hashed
    if own is None and len(changes(old, hashed)) > _ALIKE:
        return Why(Reason.NEW, "new")
    if old.get("version") != hashed["version"]:
        return Why(Reason.STEP_VERSION, f"step version: {old.get('version')} -> {hashed['version']}")
    for part, reason, label in (
        ("config", Reason.CONFIG_CHANGED, ""),
        ("external", Reason.EXTERNAL_CHANGED, "external "),
        ("machine", Reason.MACHINE_CHANGED, ""),
    ):
        if found := changes(old.get(part) or {}, hashed.get(part) or {}):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            return Why(reason, f"{label}{found[0]}{more}")
    if found := changes(old.get("inputs") or {}, hashed["inputs"]):
        return Why(Reason.INPUT_CHANGED, f"input {', '.join(change.path for change in found)} changed")
    return Why(Reason.MISSING, "missing")


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, below in value.items():
        path = f"{above}.{name}" if above else name
        if isinstance(below, Mapping) and below:
            yield from _leaves(below, path)
        else:
            yield path, below


def _shown(value: Any) -> str:
    text = "default" if value is None else json.dumps(value, ensure_ascii=False).strip('"')
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
