"""What an engine that runs the verifier can do, and what it hands back: one request or document in, one result out.

Results stream out as they are ready, numbered by their place in the input. Any engine must give the same text for
greedy requests, and the same states up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from speculators.decoding.request import Request


@dataclass(frozen=True)
class Answer:
    """What the verifier wrote: `token_ids` with the stop token, if there was one, and why it ended."""

    number: int
    token_ids: list[int]
    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class DocumentStates:
    """The verifier's streams over one document of n tokens.

    `aux` [n, A*h]: the streams entering the requested layers, side by side. `last` [n, h]: the stream before the
    final norm. `argmax` int32 [n]: the greedy next token after each position.
    """

    number: int
    aux: torch.Tensor
    last: torch.Tensor
    argmax: torch.Tensor


class Engine(Protocol):
    """A verifier at work."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Answer every request."""

    def hidden_states(self, documents: Sequence[torch.Tensor]) -> Iterator[DocumentStates]:
        """Read every document (token ids [n]) and give the streams of the layers that the engine was opened with."""
