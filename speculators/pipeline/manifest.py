"""`artifact.json`: what an artifact is, what it was made from and with, and the sha256 of every file in it."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from speculators.errors import StepError, UsageError

NAME = "artifact.json"
_ID = re.compile(r"[a-z0-9][a-z0-9_.-]*-[0-9a-f]{16}")
_FOLDER = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class FileEntry:
    """A file of the payload: its bytes and its sha256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that is recorded about a published artifact."""

    step: str
    key: str
    hashed: dict[str, Any]
    """The object whose sha256 is the key."""
    instance: str
    """The digest of the payload. One key may have several instances, since not every step is deterministic."""
    instances: dict[str, str]
    """The instances of all artifacts that this one was made from, directly and indirectly, by step."""
    files: dict[str, FileEntry]
    """By path inside the artifact, with `/` between folders."""
    versions: dict[str, str]
    host: str
    started: str
    finished: str
    seconds: float
    peak_memory: int
    """Bytes."""
    run: str
    recipe: str
    estimated_seconds: float | None = None
    """What the step's own model said, so that later estimates can be scaled by how wrong it was."""

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return sum(entry.size for entry in self.files.values())

    def write(self, folder: Path) -> None:
        """Write `artifact.json` and see it onto the disk."""
        beside = folder / f".{NAME}"
        with beside.open("w", encoding="utf-8") as stream:
            json.dump(asdict(self), stream, indent=1, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(folder / NAME)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `artifact.json`; raises ValueError when it is missing, cut short, or names a path outside its folder."""
        try:
            text = (folder / NAME).read_bytes()
        except OSError as error:
            raise ValueError(f"{NAME} cannot be read: {error.strerror}") from error
        return cls.decode(text)

    @classmethod
    def decode(cls, text: bytes) -> Manifest:
        """The manifest out of the text of an `artifact.json`; raises ValueError as `read` does."""
        import msgspec

        try:
            manifest = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{NAME} is damaged: {error}") from error
        for path in manifest.files:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{NAME} names a file outside the artifact: {path!r}")
        return manifest


def artifact_id(step: str, key: str) -> str:
    """The name of the artifact's folder: 64 bits of the key for people; all 256 are compared on every hit."""
    return f"{folder_name(step)}-{key[:16]}"


def parse_id(text: str) -> str:
    """An artifact id as given by a user; raises UsageError for anything that is not one (`..`, paths)."""
    if not _ID.fullmatch(text):
        raise UsageError(f"{text!r} is not an artifact; artifacts are named like `tokens-6d20f03c9a41be77`")
    return text


def folder_name(text: str) -> str:
    """A name that may become a folder; raises UsageError for any other (`..`, separators, capitals, spaces)."""
    if not _FOLDER.fullmatch(text):
        raise UsageError(f"{text!r} cannot name a folder: use a-z, 0-9, `.`, `_` and `-`, and start with a-z or 0-9")
    return text


def payload(folder: Path) -> Iterator[tuple[str, Path]]:
    """The payload's files by their path with `/`, sorted; hidden files are scratch and do not belong to it.

    Raises StepError at a link or anything else that is not a plain file: it would not survive a copy of the store.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names) + [name for name in folders if (Path(place) / name).is_symlink()]:
            path = Path(place) / name
            relative = path.relative_to(folder).as_posix()
            if name.startswith(".") or relative == NAME:
                continue
            if not stat.S_ISREG(path.lstat().st_mode):
                raise StepError(f"{relative} is not a plain file; artifacts hold neither links nor devices")
            yield relative, path


def instance_of(files: Mapping[str, FileEntry]) -> str:
    """The digest of a payload.

    It is taken from the contents, so an artifact that was made again with the very same bytes is the same instance,
    and what was made from it stays good.
    """
    from speculators.pipeline.digests import value_sha256

    return value_sha256({path: entry.sha256 for path, entry in files.items()})[:32]


def now() -> str:
    """The moment in UTC with milliseconds, as written everywhere: `2026-08-24T14:02:11.482Z`."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
