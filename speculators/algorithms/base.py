"""What training needs of an algorithm: a batch goes in, a loss and measurements as (sum, count) come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

Measured = dict[str, tuple[float, float]]
"""Name -> (sum, count). Sums over batches (or ranks) are taken before dividing."""


@dataclass(frozen=True)
class Batch:
    """Whole documents packed one after another, N tokens in all.

    `loss_mask[t]` says whether token t itself was written by the assistant; `aux` are the verifier's streams side by
    side, `last` the one before its final norm, `argmax` its own most likely next token after t.
    """

    lengths: tuple[int, ...]
    input_ids: torch.Tensor  # int64 [N]
    loss_mask: torch.Tensor  # bool [N]
    aux: torch.Tensor  # [N, A*h]
    last: torch.Tensor  # [N, h]
    argmax: torch.Tensor  # int64 [N]

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Accepted:
    """How far every chain of a batch would have been accepted, for the walk estimate.

    `newest` int64 [chains] is the index in the batch of each chain's newest committed token, ascending; `lengths`
    int64 [chains] how many of its proposals in a row are the verifier's own choices.
    """

    newest: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Evaluation:
    """A batch's loss (a scalar, with gradient if one was asked for), its measurements, and its chains' acceptance."""

    loss: torch.Tensor
    measured: Measured
    accepted: Accepted


class Objective(Protocol):
    """An algorithm's training: `algorithms/<name>/objective.py` has one."""

    @property
    def network(self) -> nn.Module:
        """The draft; its parameters with `requires_grad` are trained."""

    @property
    def steps(self) -> int:
        """Proposals a chain is trained for, and judged by in validation."""

    def draft_config(self) -> dict[str, Any]:
        """The draft's part of the checkpoint's config.json."""

    def evaluate(self, batch: Batch, noise: torch.Generator | None = None) -> Evaluation:
        """Loss and measurements of one batch; feature noise only when a generator is given."""


def add_measured(total: Measured, new: Mapping[str, tuple[float, float]]) -> None:
    """Add sums and counts of `new` to `total`, in place."""
    for name, (value, count) in new.items():
        before = total.get(name, (0.0, 0.0))
        total[name] = before[0] + value, before[1] + count


def divided(measured: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The figures themselves; those without any count are left out."""
    return {name: value / count for name, (value, count) in measured.items() if count}
