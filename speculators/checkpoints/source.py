"""Where a foreign draft lies: a folder, one weights file, or a model of the hub at a revision; and what pins it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from speculators.checkpoints.foreign import PATTERNS, Foreign, index_file, read_foreign_config, weight_files
from speculators.errors import UsageError
from speculators.pipeline.digests import file_sha256
from speculators.verifiers.hub import TOKENIZER, fetch_files, resolve_commit
from speculators.verifiers.weight_index import INDEX, read_index

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class DraftSource:
    """A draft as the user named it: `path` here, or `hub` with a `revision` (None: newest)."""

    text: str
    path: Path | None = None
    hub: str = ""
    revision: str | None = None


def parse_draft_source(text: str) -> DraftSource:
    """The source that a text names; raises UsageError when it names none, or nothing that exists."""
    path = Path(text).expanduser()
    if path.exists():
        return DraftSource(text, path=path.resolve())
    if path.is_absolute() or text.startswith(("./", "../", "~")):
        raise UsageError(f"there is no {path}")
    name, at, revision = text.partition("@")
    if not _HUB_ID.fullmatch(name) or (at and not revision):
        raise UsageError(
            f"{text!r} is neither a folder, nor a weights file, nor a hub id like yuhuili/EAGLE3-LLaMA3.1-Instruct-8B, "
            "perhaps with @REVISION"
        )
    return DraftSource(text, hub=name, revision=revision or None)


def draft_digest(source: DraftSource) -> str:
    """What pins the draft: a commit of the hub, or a digest over config and weights."""
    if source.path is None:
        return f"hub:{source.hub}@{resolve_commit(source.hub, source.revision)}"
    directory = source.path if source.path.is_dir() else source.path.parent
    files = [source.path] if source.path.is_file() else list(weight_files(directory))
    config = directory / "config.json"
    lines = [f"{file.name} {file_sha256(file)}\n" for file in [*files, *([config] if config.is_file() else [])]]
    return f"tree:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def open_draft(source: DraftSource, digest: str, format: str = "auto") -> Foreign:  # noqa: A002  the option's name
    """Open the draft that `digest` pins, fetched if it is on the hub: safetensors, else pickled weights.

    Of a verifier whose head it is (`format` mtp), only the files with the head are fetched. Raises UsageError when it
    cannot be read, MachineError when the hub is out of reach.
    """
    if source.path is not None:
        return Foreign.open(source.path, source.text)
    commit = digest.rpartition("@")[2]
    name = f"{source.hub} at {commit[:12]}"
    if format == "mtp":
        parts = _head_files(source.hub, commit, name)
        if parts:
            return Foreign.open(fetch_files(source.hub, commit, ["config.json", *parts]), name, only=parts)
    for pattern in PATTERNS:
        directory = fetch_files(source.hub, commit, ["config.json", TOKENIZER, f"{pattern}.index.json"])
        index = index_file(directory, pattern)
        directory = fetch_files(
            source.hub, commit, [pattern] if index is None else sorted({*read_index(index).values()})
        )
        if weight_files(directory):
            break
    return Foreign.open(directory, name)


def _head_files(hub: str, commit: str, name: str) -> list[str]:
    """The files with the head of a verifier on the hub; none when its weights are in a single file."""
    from speculators.checkpoints.importers.mtp import head_files

    directory = fetch_files(hub, commit, ["config.json", INDEX])
    if not (directory / INDEX).is_file():
        return []
    return list(head_files(read_foreign_config(directory, name), read_index(directory / INDEX), name))
