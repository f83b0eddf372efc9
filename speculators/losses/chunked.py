"""The draft's head and its loss in one pass over chunks of positions, gradients included.

Logits of all positions at once would be the largest tensors of training. Here a chunk of the verifier's positions is
worked off completely: its distributions are computed once, every training-time-test step that predicts the same
positions is compared with them, and only the gradients with respect to hidden states and head are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from speculators.losses.distributions import Comparison, Target, mix

CHUNK_ELEMENTS = 1 << 22
"""Probabilities of the verifier computed at a time: tensors of 16 MiB in float32."""
CHUNK_POSITIONS = 64
"""Fewest positions in a chunk, whatever the vocabulary: products with fewer rows are slow."""

Targets = Callable[[slice], Target]
"""The verifier's distributions at a range of target positions."""


@dataclass(frozen=True)
class StepRows:
    """The rows of one training-time-test step that take part in the loss.

    `hidden` [n, h] is what the head reads; `targets` int64 [n] (on the CPU, strictly ascending) number the positions
    they predict; `weights` [n] multiply each row's loss in the sum.
    """

    hidden: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Judged:
    """What the head made of one step's rows: `values` [n], each loss of the mix, and `best` int64 [n], draft ids."""

    values: torch.Tensor
    terms: Mapping[str, torch.Tensor]
    best: torch.Tensor


def chunked_loss(
    steps: Sequence[StepRows],
    weight: torch.Tensor,
    rounded: torch.Tensor,
    targets: Targets,
    positions: int,
    losses: Mapping[str, float],
    chunk: int | None = None,
) -> tuple[torch.Tensor, list[Judged]]:
    """The weighted sum of all rows' losses, a scalar with gradients to every `hidden` and to `weight` [Vd, h].

    `rounded` [Vd, h] is the weight in the type of the products; `positions` is how many target positions there are,
    `chunk` how many are worked off at a time (None: by the size of the vocabulary). What comes beside the loss carries
    no gradient.
    """
    size = chunk or max(CHUNK_POSITIONS, CHUNK_ELEMENTS // len(rounded))
    work = _Work(steps, rounded, targets, positions, losses, size)
    total: torch.Tensor = _ChunkedLoss.apply(work, weight, *(step.hidden for step in steps))  # type: ignore[no-untyped-call]
    return total, work.judged


class _Work:
    """One call's rows and buffers; `run` fills them chunk by chunk."""

    def __init__(
        self,
        steps: Sequence[StepRows],
        rounded: torch.Tensor,
        targets: Targets,
        positions: int,
        losses: Mapping[str, float],
        size: int,
    ) -> None:
        self.steps, self.rounded, self.targets = steps, rounded, targets
        self.positions, self.size = positions, size
        self.losses = {name: share for name, share in losses.items() if share}
        self.judged = [
            Judged(
                torch.empty_like(step.weights),
                {name: torch.empty_like(step.weights) for name in self.losses},
                step.targets.new_empty(len(step.targets), device=step.weights.device),
            )
            for step in steps
        ]

    def run(self, to_hidden: list[torch.Tensor] | None, to_weight: torch.Tensor | None) -> torch.Tensor:
        """The total; gradients are written into `to_hidden` and added to `to_weight` where these are given."""
        total = self.steps[0].weights.new_zeros(())
        for start in range(0, self.positions, self.size):
            bounds = torch.tensor([start, min(start + self.size, self.positions)])
            target = self.targets(slice(*bounds.tolist()))
            for number, step in enumerate(self.steps):
                rows = slice(*torch.searchsorted(step.targets, bounds).tolist())
                if rows.start == rows.stop:
                    continue
                every = rows.stop - rows.start == len(target.logits)
                index = step.targets[rows].to(target.logits.device) - start
                logits, low = self._logits(step.hidden[rows])
                seen = target if every else target.rows(index)
                pair = Comparison(logits, seen)
                values, gradient, terms = mix(pair, self.losses)
                judged = self.judged[number]
                judged.values[rows], judged.best[rows] = values, pair.peak[1]
                for name, term in terms.items():
                    judged.terms[name][rows] = term
                total += torch.dot(values, step.weights[rows])
                if to_hidden is None:
                    continue
                # A row's weight multiplies its narrow side of either product, not its logits.
                slope, share = gradient.to(self.rounded.dtype), step.weights[rows, None]
                to_hidden[number][rows] = (slope @ self.rounded) * share
                if to_weight is not None:
                    to_weight += slope.t() @ (low * share).to(low.dtype)
        return total

    def _logits(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, Vd] in the type of the loss, and the product's operand [n, h]."""
        low = hidden.detach().to(self.rounded.dtype)
        return functional.linear(low, self.rounded).to(self.steps[0].weights.dtype), low


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, weight: torch.Tensor, *hidden: torch.Tensor) -> torch.Tensor:
        wants_hidden = any(ctx.needs_input_grad[2:])
        to_hidden = [torch.empty_like(one) for one in hidden] if wants_hidden else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = work.run(to_hidden, to_weight)
        ctx.has_weight = to_weight is not None
        ctx.save_for_backward(*([to_weight] if to_weight is not None else []), *(to_hidden or []))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = [one * gradients[0] for one in ctx.saved_tensors]
        if ctx.has_weight:
            return None, saved[0], *saved[1:]
        return None, None, *saved
