"""A verifier that lends a draft its embeddings or its head: of a model on the hub, only the file that holds them comes.

The weights of a large verifier are hundreds of gigabytes; a converted draft needs its config and, at most, two tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts, safetensors_header
from speculators.verifiers.hub import TOKENIZER, fetch_files
from speculators.verifiers.weight_index import INDEX, read_index

if TYPE_CHECKING:
    import torch

CONFIGS = ("config.json", "generation_config.json")

Part = Literal["embedding", "head"]


@dataclass(frozen=True)
class Lender:
    """A verifier: its name as a checkpoint gives it, its folder here, and its commit if it is one of the hub's."""

    name: str
    directory: Path
    facts: VerifierFacts
    commit: str | None = None

    @classmethod
    def of_directory(cls, directory: Path, name: str) -> Lender:
        """A verifier that lies here as a whole."""
        return cls(name, directory, VerifierFacts.from_directory(directory))

    @classmethod
    def of_hub(cls, model: str, commit: str) -> Lender:
        """A model of the hub, of which the config is fetched."""
        directory = fetch_files(model, commit, CONFIGS)
        return cls(model, directory, VerifierFacts.from_directory(directory), commit)

    def lend(self, part: Part) -> torch.Tensor:
        """The embeddings or the head, [V, h], as they were saved.

        Raises UsageError when no tensor is that part, or when it is quantised.
        """
        from speculators.verifiers.weights import EMBEDDINGS, HEADS, read_tensor, tensor_name

        shared = part == "head" and self._is_tied
        endings = EMBEDDINGS if part == "embedding" or shared else HEADS
        files = self._files()
        name = tensor_name(files, endings, f"{self.name}: ", part)
        directory = self.directory
        if self.commit is not None:
            directory = fetch_files(self.name, self.commit, [files[name]])
        found = read_tensor(directory / files[name], name)
        if not found.is_floating_point() or found.element_size() < 2:
            raise UsageError(f"{self.name}: the verifier's {part} is quantised, so it cannot be lent to the draft")
        return found

    def tokenizer_directory(self) -> Path:
        """Its folder, with its tokenizer.json in it if it has one."""
        if self.commit is None:
            return self.directory
        return fetch_files(self.name, self.commit, [TOKENIZER])

    @property
    def _is_tied(self) -> bool:
        config = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or {}
        return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))

    def _files(self) -> dict[str, str]:
        """Tensor -> name of the file that holds it."""
        directory = self.directory
        if self.commit is not None:
            directory = fetch_files(self.name, self.commit, [INDEX])
        index = directory / INDEX
        if index.is_file():
            return read_index(index)
        if self.commit is not None:
            directory = fetch_files(self.name, self.commit, ["*.safetensors"])
        found = {
            tensor: file.name for file in sorted(directory.glob("*.safetensors")) for tensor in safetensors_header(file)
        }
        if not found:
            raise UsageError(f"{self.name} has no *.safetensors file; pickled weights of a verifier are not read")
        return found
