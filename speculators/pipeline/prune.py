"""Making room: which artifacts and which unfinished work may go, oldest use first, and removing them."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from speculators.pipeline.manifest import NAME
from speculators.pipeline.store import Store


@dataclass(frozen=True)
class Candidate:
    """Something that may go: an artifact, or unfinished work and what was half fetched (`partial`)."""

    id: str
    step: str
    partial: bool
    size: int
    used: float
    """When it was last used, in seconds since the epoch."""


def candidates(store: Store) -> list[Candidate]:
    """Everything in the store that nobody works on, the longest unused first."""
    found = []
    for artifact in store.all():
        used = (artifact.path / NAME).stat().st_mtime
        found.append(Candidate(artifact.path.name, artifact.manifest.step, False, artifact.manifest.size, used))
    for name in sorted({path.name for path in _unfinished(store)}):
        with store.try_hold(name) as free:
            if free:
                measured = [_measured(path) for path in _unfinished(store) if path.name == name]
                size, used = sum(size for size, _ in measured), max((used for _, used in measured), default=0.0)
                found.append(Candidate(name, name[:-17], True, size, used))
    return sorted(found, key=lambda candidate: candidate.used)


def chosen(
    all_of_them: Collection[Candidate],
    *,
    steps: Collection[str] = (),
    older_than: float | None = None,
    to_size: int | None = None,
) -> list[Candidate]:
    """Those that meet every condition: of these steps or ids, unused for `older_than` seconds, and, the longest unused
    first, as many as it takes until the store holds at most `to_size` bytes.
    """
    now = time.time()
    found = [
        candidate
        for candidate in all_of_them
        if (not steps or candidate.step in steps or candidate.id in steps)
        and (older_than is None or now - candidate.used >= older_than)
    ]
    if to_size is None:
        return found
    excess = sum(candidate.size for candidate in all_of_them) - to_size
    kept: list[Candidate] = []
    for candidate in found:
        if excess > 0:
            kept.append(candidate)
            excess -= candidate.size
    return kept


def remove(store: Store, them: Collection[Candidate]) -> list[Candidate]:
    """Remove them, except what somebody began to work on meanwhile; those that are gone."""
    gone = []
    for candidate in them:
        with store.try_hold(candidate.id) as free:
            if not free:
                continue
            if candidate.partial:
                store.discard_partial(candidate.id)
            elif (store.artifacts / candidate.id).exists():
                store.discard(candidate.id)
            gone.append(candidate)
    store.empty_trash()
    return gone


def _unfinished(store: Store) -> list[Path]:
    """The folders of unfinished work, and of what was not fetched to its end."""
    places = (place for place in (store.partials, store.incomings) if place.is_dir())
    return [path for place in places for path in place.iterdir() if path.is_dir()]


def _measured(folder: Path) -> tuple[int, float]:
    size, used = 0, folder.stat().st_mtime
    for path in folder.rglob("*"):
        stat = path.lstat()
        size, used = size + stat.st_size, max(used, stat.st_mtime)
    return size, used
