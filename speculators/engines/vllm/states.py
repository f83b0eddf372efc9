"""Hidden states from vLLM's own extraction: files in a scratch folder, each read, compared and removed at once."""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from speculators.data.tokens import Reading
from speculators.engines.base import DocumentStates
from speculators.engines.predictions import predictions
from speculators.engines.vllm.client import Body, Call, complete
from speculators.engines.vllm.images import Shown
from speculators.errors import StepError
from speculators.layers.vocabulary import VerifierHead
from speculators.verifiers.weights import VerifierWeights

HEAD_BYTES = 1 << 28
"""Logits held at once while their argmax is taken."""


@dataclass(frozen=True)
class Reader:
    """Turns what vLLM wrote for a document into its states. `columns` are the layer ids in the files, ascending.

    `shown` is there where documents have images.
    """

    scratch: Path
    layers: tuple[int, ...]
    columns: tuple[int, ...]
    head: VerifierHead
    shown: Shown | None = None

    @classmethod
    def open(
        cls, directory: Path, scratch: Path, layers: Sequence[int], depth: int, shown: Shown | None = None
    ) -> Reader:
        """For the verifier in `directory`, of `depth` layers; its head is kept on a GPU where there is one."""
        weights = VerifierWeights.read(directory)
        place = "cuda" if torch.cuda.is_available() else "cpu"
        head = VerifierHead(weights.head.to(place), weights.norm.to(place), weights.eps, weights.scale, weights.softcap)
        return cls(scratch, tuple(layers), tuple(sorted({*layers, depth})), head, shown)

    def documents(
        self, urls: Sequence[str], model: str, documents: Sequence[Reading], *, at_once: int
    ) -> Generator[DocumentStates, None, None]:
        """The states of every document, as they are ready; at most `at_once` files a server wait to be read."""
        rows = max(1, HEAD_BYTES // (4 * self.head.weight.shape[0]))
        order = sorted(range(len(documents)), key=lambda number: -len(documents[number]))
        calls = [self._call(documents[number]) for number in order]
        for place, (states, token_ids) in complete(urls, model, calls, self._received, at_once=at_once):
            number = order[place]
            if not torch.equal(token_ids, documents[number].input_ids):
                raise StepError(f"vLLM read other tokens than it was sent in document {number}; its states are no use")
            streams = {layer: states[:, column] for column, layer in enumerate(self.columns)}
            last = streams[self.columns[-1]]
            aux = torch.cat([streams[layer] for layer in self.layers], -1) if self.layers else last[:, :0]
            choices = predictions(last, documents[number].predicts, self._argmax, rows)
            yield DocumentStates(number, aux, last, documents[number].with_known_choices(choices))

    def _call(self, document: Reading) -> Call:
        ids, one = document.input_ids.tolist(), {"max_tokens": 1, "temperature": 0.0}
        if document.images and self.shown is not None:
            return self.shown.call(ids, document.images, one)
        return Call({"prompt": ids, "return_token_ids": True, **one})

    def _received(self, answer: Body) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the file that an answer names, which must lie in our scratch folder, and remove it."""
        file = Path(answer["kv_transfer_params"]["hidden_states_path"]).resolve()
        if self.scratch.resolve() not in file.parents:
            raise StepError(f"vLLM wrote states to {file}, expected them in {self.scratch}")
        lock = file.with_name(f"{file.name}.lock")
        with lock.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_SH)  # until the file is whole
            found = load_file(file)
        file.unlink()
        lock.unlink()
        states, token_ids = found["hidden_states"], found["token_ids"]
        if states.shape[:2] != (len(token_ids), len(self.columns)):
            raise StepError(f"vLLM wrote states of shape {tuple(states.shape)} for {len(self.columns)} layers")
        return states, token_ids

    @torch.no_grad()
    def _argmax(self, last: torch.Tensor) -> torch.Tensor:
        weight = self.head.weight
        return (self.head.normed(last.to(weight.device, torch.float32)) @ weight.T).max(-1).indices
