"""The loss and the acceptance of what a draft's head reads along chains, whichever network it came from.

Step j of the chain rooted at t predicts x_{t+2+j}; it is compared with the verifier's distribution p_{t+1+j} and its
most likely token. Drafts differ in how they come to a hidden state for every chain and step, and in nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from speculators.algorithms.base import Accepted, Batch, Evaluation, Measured, Total
from speculators.algorithms.chains import Chains
from speculators.layers.vocabulary import Teacher, VerifierHead
from speculators.losses.chunked import Judged, StepRows, chunked_loss
from speculators.losses.distributions import NEED_TRUE_MASS, Compare, Target, compare
from speculators.verifiers.weights import VerifierWeights

Head = tuple[torch.Tensor, torch.Tensor]
"""A head's weight [Vd, h] twice: with gradient, and in the type of the products."""


@dataclass(frozen=True)
class Criterion:
    """What a draft is judged by.

    The loss is `sum_j weights[j] * mean(loss of step j)`; the mean is over the step's positions in the batch
    (`token_mean`), over documents of the document's mean (`sequence_mean`), or the sum over all tokens of the batch,
    prompts included (`padded_mean`). Positions whose most likely token the draft does not have are left out of the
    loss with `drops_unknown`, and always count as misses in the accuracy. With `follows_data`, `ce` compares with the
    batch's own next tokens instead of the verifier's choices.
    """

    losses: Mapping[str, float]
    weights: Sequence[float]
    reduction: Literal["token_mean", "sequence_mean", "padded_mean"]
    is_renormalized: bool
    drops_unknown: bool
    follows_data: bool


@dataclass(frozen=True)
class Counted:
    """What counts in the loss, in this part of a batch and in the whole of it.

    `rows[j]` [A_j] is 1 where a chain's step j counts; `whole` [steps] is what the reduction divides by, `share` how
    much of the whole batch's chains is here.
    """

    rows: list[torch.Tensor]
    whole: torch.Tensor
    share: float


@dataclass(frozen=True)
class Verdict:
    """An evaluation, with what it was made of: every step's rows and how they were judged."""

    evaluation: Evaluation
    rows: list[StepRows]
    judged: list[Judged]


@dataclass(frozen=True)
class _Targets:
    """The positions whose distributions the batch's steps are compared with.

    `positions` int64 [U] ascending, indices into the batch; `of_step[j]` int64 [A_j] places the rows of step j in it.
    """

    positions: torch.Tensor
    of_step: tuple[torch.Tensor, ...]


class Judge:
    """Compares a draft's heads with a verifier's.

    `target_ids` int64 [Vd] are the verifier's ids of the draft's vocabulary, None for all of them. `dtype` is the type
    in which distributions are compared, `compute_dtype` that of the teacher's products; `chunk` positions are worked
    off at a time.
    """

    def __init__(
        self,
        criterion: Criterion,
        verifier: VerifierHead,
        target_ids: torch.Tensor | None,
        *,
        dtype: torch.dtype,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        self._criterion, self._target_ids, self._dtype = criterion, target_ids, dtype
        self.chunk = chunk
        """Positions whose whole distributions are held at a time; None: by the size of the vocabulary."""
        self.compare: Compare = compare
        """How the distributions of a chunk are compared; another way may take less time."""
        with_mass = not criterion.is_renormalized or bool(NEED_TRUE_MASS & criterion.losses.keys())
        # The only one at weight 1 is the loss itself.
        self._names_terms = [weight for weight in criterion.losses.values() if weight] != [1.0]
        self._teacher = Teacher(verifier, target_ids, with_mass=with_mass, compute_dtype=compute_dtype)
        self._known: torch.Tensor | None = None  # bool [V]
        if criterion.drops_unknown and target_ids is not None:
            self._known = torch.zeros(len(verifier.weight), dtype=torch.bool, device=target_ids.device)
            self._known[target_ids] = True
        self._draft_ids: torch.Tensor | None = None  # int64 [V], -1 for tokens that the draft does not have
        if criterion.follows_data and target_ids is not None:
            self._draft_ids = torch.full((len(verifier.weight),), -1, device=target_ids.device)
            self._draft_ids[target_ids] = torch.arange(len(target_ids), device=target_ids.device)

    def count(self, batch: Batch, chains: Chains, total: Total) -> Counted:
        """What counts of these chains; every process has to ask, whatever it has of the batch."""
        rows, sizes = [], []
        for step, alive in enumerate(chains.alive):
            counted = torch.ones(len(alive), dtype=self._dtype, device=batch.last.device)
            if self._known is not None:
                counted = counted * self._known[batch.argmax[chains.roots[alive] + 1 + step]]
            rows.append(counted)
            sizes.append(self._size(counted, chains.numbers[alive], batch))
        # Counted in float64: sums over processes are exact.
        roots = torch.tensor([len(chains.roots)], dtype=torch.float64)
        own = torch.cat([torch.stack(sizes).double().cpu(), roots])
        whole = total(own)
        return Counted(rows, whole[:-1], float(own[-1] / whole[-1].clamp(min=1)))

    def judge(
        self,
        batch: Batch,
        chains: Chains,
        counted: Counted,
        hidden: Sequence[torch.Tensor],
        head: Head | list[Head],
        shares: Sequence[torch.Tensor] | None = None,
        beside: Sequence[tuple[float, Sequence[torch.Tensor]]] = (),
    ) -> Verdict:
        """Judge `hidden[j]` [A_j, h], what the head reads at step j of the chains that are alive there.

        `head` is one for all steps, or a list with one for each. `shares[j]` [A_j] are more weights of the rows.
        `beside` are other readings of the same steps, each with its weight: they are in the loss, and in nothing else
        that comes back.
        """
        targets = _targets(chains)
        rows = self._rows(batch, chains, counted, targets, hidden, shares)
        others = [
            StepRows(row.hidden, row.targets, row.weights * weight)
            for weight, reading in beside
            for row in self._rows(batch, chains, counted, targets, reading, shares)
        ]
        last, following = batch.last[targets.positions], self._following(batch, targets)
        total, judged = chunked_loss(
            [*rows, *others],
            *_side_by_side(head),
            partial(self._target, last, following),
            len(targets.positions),
            self._criterion.losses,
            self.chunk,
            self.compare,
        )
        judged = judged[: len(rows)]
        hits = [self._hits(batch, chains, step, one) for step, one in enumerate(judged)]
        measured = _measure(total, counted.share, rows, judged, hits, names_terms=self._names_terms)
        return Verdict(Evaluation(total, measured, _accepted(chains, hits)), rows, judged)

    def _size(self, counted: torch.Tensor, documents: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the reduction divides a step's sum by, as far as it is in this part of the batch, a scalar."""
        if self._criterion.reduction == "padded_mean":
            return counted.new_full((), batch.tokens)
        if self._criterion.reduction == "token_mean":
            return counted.sum()
        return (_per_document(counted, documents, batch) > 0).sum().to(counted)

    def _rows(
        self,
        batch: Batch,
        chains: Chains,
        counted: Counted,
        targets: _Targets,
        hidden: Sequence[torch.Tensor],
        shares: Sequence[torch.Tensor] | None,
    ) -> list[StepRows]:
        """What the head reads at each step, with the weight of every row in the loss."""
        rows = []
        for step, one in enumerate(hidden):
            alive, weights = chains.alive[step], counted.rows[step]
            if self._criterion.reduction == "sequence_mean":
                documents = chains.numbers[alive]
                weights = weights / _per_document(weights, documents, batch).clamp(min=1)[documents]
            weights = weights / counted.whole[step].to(weights).clamp(min=1)
            weights = weights * self._criterion.weights[step]
            if shares is not None:
                weights = weights * shares[step]
            rows.append(StepRows(one, targets.of_step[step], weights))
        return rows

    def _target(self, last: torch.Tensor, following: torch.Tensor | None, where: slice) -> Target:
        logits, total = self._teacher(last[where])
        total = None if total is None else total.to(self._dtype)
        wanted = None if following is None else following[where]
        return Target(logits.to(self._dtype), total, self._criterion.is_renormalized, wanted)

    def _following(self, batch: Batch, targets: _Targets) -> torch.Tensor | None:
        """The text's tokens after the target positions as draft ids, int64 [U], where `ce` compares with them."""
        if not self._criterion.follows_data:
            return None
        ids = batch.input_ids[targets.positions + 1]
        return ids if self._draft_ids is None else self._draft_ids[ids]

    def _hits(self, batch: Batch, chains: Chains, step: int, judged: Judged) -> torch.Tensor:
        """Where a step's most likely token is the verifier's own choice over its whole vocabulary, bool [A_j]."""
        best = judged.best if self._target_ids is None else self._target_ids[judged.best]
        return best == batch.argmax[chains.roots[chains.alive[step]] + 1 + step]


def chosen_otherwise(
    batch: Batch, chains: Chains, evaluation: Evaluation, chosen: Sequence[torch.Tensor]
) -> Evaluation:
    """The evaluation of a draft that proposes `chosen[j]` int64 [A_j], verifier ids, and not its head's likeliest."""
    hits = [
        ids == batch.argmax[chains.roots[alive] + 1 + step]
        for step, (alive, ids) in enumerate(zip(chains.alive, chosen, strict=True))
    ]
    accuracy = {f"accuracy_{step}": (float(hit.sum()), float(len(hit))) for step, hit in enumerate(hits, start=1)}
    return replace(evaluation, measured={**evaluation.measured, **accuracy}, accepted=_accepted(chains, hits))


def verifier_head(weights: VerifierWeights, device: torch.device | str) -> VerifierHead:
    """The head of a verifier whose weights were read, on a device."""
    return VerifierHead(weights.head.to(device), weights.norm.to(device), weights.eps, weights.scale, weights.softcap)


def nothing_to_judge(chains: Chains) -> Evaluation:
    """The evaluation of a batch, or a process's part of it, without any chain."""
    nothing = torch.zeros((), requires_grad=torch.is_grad_enabled())
    return Evaluation(nothing, {}, Accepted(chains.roots, chains.roots))


def _side_by_side(head: Head | list[Head]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    heads = head if isinstance(head, list) else [head]
    return [weight for weight, _ in heads], [rounded for _, rounded in heads]


def _targets(chains: Chains) -> _Targets:
    per_step = [chains.roots[alive] + 1 + step for step, alive in enumerate(chains.alive)]
    positions = torch.unique(torch.cat(per_step))
    return _Targets(positions, tuple(torch.searchsorted(positions, one) for one in per_step))


def _per_document(counted: torch.Tensor, documents: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How many of a step's rows count in each document of the batch, [documents]."""
    return counted.new_zeros(len(batch.lengths)).index_add_(0, documents.to(counted.device), counted)


def _accepted(chains: Chains, hits: list[torch.Tensor]) -> Accepted:
    standing = torch.ones(len(chains.roots), dtype=torch.bool)
    lengths = torch.zeros(len(chains.roots), dtype=torch.int64)
    together = torch.cat(hits).cpu()  # once: to wait for a GPU after each step would keep it from the next
    for alive, hit in zip(chains.alive, torch.split(together, [len(hit) for hit in hits]), strict=True):
        correct = torch.zeros_like(standing)
        correct[alive] = hit
        standing &= correct
        lengths += standing
    return Accepted(chains.roots + 1, lengths)


def _measure(
    total: torch.Tensor,
    share: float,
    rows: list[StepRows],
    judged: list[Judged],
    hits: list[torch.Tensor],
    *,
    names_terms: bool,
) -> Measured:
    """Sums and counts of the loss, and of each step's loss, terms and hits, brought to the processor all at once."""
    figures: dict[str, tuple[torch.Tensor, torch.Tensor | float]] = {"loss": (total, share)}
    for step, (row, one, hit) in enumerate(zip(rows, judged, hits, strict=True), start=1):
        counted = row.weights > 0
        values = {"loss": one.values, **(one.terms if names_terms else {})}
        count = counted.sum()
        for name, value in values.items():
            figures[f"{name}_{step}"] = torch.where(counted, value, 0).sum(), count
        figures[f"accuracy_{step}"] = hit.sum(), float(len(hit))
    there = [part for figure in figures.values() for part in figure if isinstance(part, torch.Tensor)]
    found = iter(torch.stack([part.to(total) for part in there]).tolist())
    return {
        name: (next(found), next(found) if isinstance(count, torch.Tensor) else count)
        for name, (_, count) in figures.items()
    }
