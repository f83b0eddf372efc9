"""The published model that an independent draft begins as: a folder, or a model of the hub at a revision."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.errors import UsageError
from speculators.pipeline.digests import file_sha256
from speculators.verifiers.hub import cached_snapshot, fetch_files, fetch_snapshot, resolve_commit
from speculators.verifiers.published import published_config

_SHARED = 0.5
"""So many of a model's tokens a verifier with the same tokenizer knows at least."""


@dataclass(frozen=True)
class ModelSource:
    """A model as the recipe names it; `path` is set for a folder, else `name` is a hub id."""

    name: str
    revision: str | None = None
    path: Path | None = None

    @classmethod
    def of(cls, model: str, revision: str | None) -> ModelSource:
        """What `algorithm.model` names; raises UsageError for a folder that is not there."""
        path = Path(model).expanduser()
        if path.is_dir():
            return cls(model, path=path.resolve())
        if path.is_absolute() or model.startswith(("./", "../", "~")):
            raise UsageError(f"`algorithm.model`: there is no directory {path}")
        return cls(model, revision)

    def digest(self) -> str:
        """What pins it: a commit of the hub, or a digest over config and weights."""
        if self.path is None:
            return f"hub:{self.name}@{resolve_commit(self.name, self.revision)}"
        files = [self.path / "config.json", *sorted(self.path.glob("*.safetensors"))]
        if len(files) < 2 or not files[0].is_file():
            raise UsageError(f"`algorithm.model` is {self.path}, and there is no model with safetensors weights")
        lines = [f"{file.name} {file_sha256(file)}\n" for file in files]
        return f"tree:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def known_config(self) -> dict[str, Any] | None:
        """Its config.json as far as it is known without a network; None: not at all."""
        if self.path is not None:
            return read_config(self.path)
        cached = cached_snapshot(self.name, self.revision)
        if cached is not None and (cached / "config.json").is_file():
            return read_config(cached)
        return published_config(self.name)

    def config(self) -> dict[str, Any]:
        """Its config.json, fetched where it is not known; raises MachineError when it cannot be."""
        known = self.known_config()
        if known is not None:
            return known
        return read_config(fetch_files(self.name, resolve_commit(self.name, self.revision), ["config.json"]))

    def directory(self) -> Path:
        """Where it lies whole, fetched if need be."""
        if self.path is not None:
            return self.path
        return fetch_snapshot(self.name, resolve_commit(self.name, self.revision))


def check_tokens(directory: Path, verifier: Path) -> None:
    """Raise UsageError when both folders have a tokenizer.json, and a token's id is not the same in both."""
    own, theirs = _token_ids(directory), _token_ids(verifier)
    if not own or not theirs:
        return
    for token, number in own.items():
        if theirs.get(token, number) != number:
            raise UsageError(
                f"{directory} cannot be an independent draft: its token {token!r} is {number}, the verifier's "
                f"{theirs[token]}; both must have the same tokenizer"
            )
    if len(own.keys() & theirs.keys()) < _SHARED * len(own):
        raise UsageError(
            f"{directory} cannot be an independent draft: most of its tokens are unknown to the verifier; both must "
            "have the same tokenizer"
        )


def _token_ids(directory: Path) -> dict[str, int]:
    """Token -> id, of a folder's tokenizer.json, without those added later; nothing where there is none."""
    try:
        words = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if isinstance(words, dict):
        return words
    return {word: number for number, (word, *_) in enumerate(words)}  # a list of words with their scores


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a model's folder; raises UsageError when there is none."""
    try:
        found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{directory} is no model: its config.json cannot be read ({error})") from error
    return found
