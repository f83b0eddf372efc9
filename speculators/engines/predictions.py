"""The verifier's own next tokens, for either engine, taken only where somebody will read them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from speculators.data.hidden_states import NOT_TAKEN

Argmax = Callable[[torch.Tensor], torch.Tensor]
"""From streams [m, h] before the final norm to token ids [m]."""


def predictions(last: torch.Tensor, predicts: torch.Tensor, argmax: Argmax, rows: int) -> torch.Tensor:
    """The greedy next token after each stream of `last` [n, h] where `predicts` [n] is true, int32 [n] on the CPU.

    `argmax` gives those of at most `rows` streams [m, h] at once, so that all logits are never held.
    """
    found = torch.full((len(last),), NOT_TAKEN, dtype=torch.int32)
    wanted = predicts.nonzero()[:, 0]
    for some in torch.split(wanted, rows):
        found[some] = argmax(last[some.to(last.device)]).to("cpu", torch.int32)
    return found
