"""The draft's head (or heads) and its loss in one pass over chunks of positions, gradients included.

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

from speculators.losses.distributions import Compare, Target, compare

CHUNK_ELEMENTS = 1 << 20
"""Probabilities of the verifier computed at a time: tensors of 4 MiB in float32, which stay in a processor's caches."""
GPU_CHUNK_ELEMENTS = 1 << 23
"""On a GPU, where reading the head costs as much as some hundred rows of its product."""
CHUNK_POSITIONS = 128
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
    weight: torch.Tensor | Sequence[torch.Tensor],
    rounded: torch.Tensor | Sequence[torch.Tensor],
    targets: Targets,
    positions: int,
    losses: Mapping[str, float],
    chunk: int | None = None,
    compared: Compare = compare,
) -> tuple[torch.Tensor, list[Judged]]:
    """The weighted sum of all rows' losses, a scalar with gradients to every `hidden` and to `weight` [Vd, h].

    `rounded` [Vd, h] is the weight in the type of the products; of both there is one for all steps, or a sequence with
    one for each, taken in turn. A narrower `weight` is the last columns of its `rounded`, and the others are frozen.
    `positions` is how many target positions there are, `chunk` how many are worked off at a time (None: by the size of
    the head), `compared` compares the rows of a chunk. What comes beside the loss carries no gradient.
    """
    weights = [weight] if isinstance(weight, torch.Tensor) else list(weight)
    low = [rounded] if isinstance(rounded, torch.Tensor) else list(rounded)
    work = _Work(steps, low, targets, positions, losses, chunk_size(low[0], chunk), compared)
    if not torch.is_grad_enabled():  # inside of the function it never is
        return work.run(None, [None] * len(weights)), work.judged
    hidden = [step.hidden for step in steps]
    total: torch.Tensor = _ChunkedLoss.apply(work, len(weights), *weights, *hidden)  # type: ignore[no-untyped-call]
    return total, work.judged


def chunk_size(head: torch.Tensor, asked: int | None = None) -> int:
    """Positions whose logits by a head [Vd, h] are held at a time: as `asked`, else by its size and where it is."""
    elements = CHUNK_ELEMENTS if head.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    return asked or max(CHUNK_POSITIONS, elements // len(head))


class _Work:
    """One call's rows and buffers; `run` fills them chunk by chunk."""

    def __init__(
        self,
        steps: Sequence[StepRows],
        rounded: Sequence[torch.Tensor],
        targets: Targets,
        positions: int,
        losses: Mapping[str, float],
        size: int,
        compared: Compare,
    ) -> None:
        self.steps, self.rounded, self.targets, self.compared = steps, rounded, targets, compared
        self.head_of = [number % len(rounded) for number in range(len(steps))]
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

    def run(self, to_hidden: list[torch.Tensor] | None, to_weight: list[torch.Tensor | None]) -> torch.Tensor:
        """The total; gradients are written into `to_hidden` and added to `to_weight` where these are given."""
        total = self.steps[0].weights.new_zeros(())
        for start in range(0, self.positions, self.size):
            self._chunk(start, total, to_hidden, to_weight)
        return total

    def _chunk(
        self,
        start: int,
        total: torch.Tensor,
        to_hidden: list[torch.Tensor] | None,
        to_weight: Sequence[torch.Tensor | None],
    ) -> None:
        bounds = torch.tensor([start, min(start + self.size, self.positions)])
        target = self.targets(slice(*bounds.tolist()))
        for number, step in enumerate(self.steps):
            rows = slice(*torch.searchsorted(step.targets, bounds).tolist())
            if rows.start == rows.stop:
                continue
            every = rows.stop - rows.start == len(target.logits)
            index = step.targets[rows].to(target.logits.device) - start
            seen = target if every else target.rows(index)
            slope, low = self._judge(number, rows, seen, total)
            if to_hidden is None:
                continue
            # A row's weight multiplies its narrow side of either product, not its logits.
            share, place = step.weights[rows, None], self.head_of[number]
            to_hidden[number][rows] = (slope @ self.rounded[place]) * share
            to_head = to_weight[place]
            if to_head is not None:
                trained = low[:, low.shape[1] - to_head.shape[1] :]
                to_head += slope.t() @ (trained * share).to(low.dtype)
            del slope, low, seen  # as large as the next step's, which would have to be there beside them

    def _judge(
        self, number: int, rows: slice, target: Target, total: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare some rows of one step; their gradient with respect to the logits, and the product's operand."""
        step, head = self.steps[number], self.rounded[self.head_of[number]]
        low = step.hidden[rows].detach().to(head.dtype)
        found = self.compared(functional.linear(low, head), target, self.losses, step.weights.dtype)
        judged = self.judged[number]
        judged.values[rows], judged.best[rows] = found.values, found.best
        for name, term in found.terms.items():
            judged.terms[name][rows] = term
        total += torch.dot(found.values, step.weights[rows])
        return found.gradient, low


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, heads: int, *tensors: torch.Tensor) -> torch.Tensor:
        """`tensors` are the weights of so many heads, then every step's hidden rows."""
        needs = ctx.needs_input_grad[2:]
        to_hidden = [torch.empty_like(one) for one in tensors[heads:]] if any(needs[heads:]) else None
        to_weight = [torch.zeros_like(one) if needs[place] else None for place, one in enumerate(tensors[:heads])]
        total = work.run(to_hidden, to_weight)
        nothing: list[torch.Tensor | None] = [None] * (len(tensors) - heads)
        ctx.gradients = [*to_weight, *(to_hidden or nothing)]
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a chunked loss can be taken once only: they are scaled in place")
        found, ctx.gradients = ctx.gradients, None
        return None, None, *(None if one is None else one.mul_(gradients[0]) for one in found)
