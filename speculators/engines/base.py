"""What an engine that runs the verifier hands back: one request or document in, one result out.

Results stream out as they are ready, numbered by their place in the input. Any engine must give the same text for
greedy requests, and the same states up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


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
    final norm. `argmax` int32 [n]: the greedy next token after each position, NOT_TAKEN where it was not wanted.
    """

    number: int
    aux: torch.Tensor
    last: torch.Tensor
    argmax: torch.Tensor
