"""How the draft would do when served, foreseen from teacher-forced passes over held-out documents.

The mean over all positions, which trainers print as accuracy, is not what serving sees: a round starts where the last
one failed, and there text is hard. The walk goes through an answer as decoding would: the prompt's pass gives the
first token, every round commits the proposals that stand and one token more, the next round starts after it. On the
verifier's own greedy text this is exactly what decoding does; on other text it is an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from speculators.algorithms.base import Measured, Objective, add_measured, divided, summed
from speculators.data.tokens import TokenDataset
from speculators.recipe.shapes.train import Validation as ValidationOptions
from speculators.training.batches import TrainingData
from speculators.training.ranks import ALONE, Ranks
from speculators.training.shares import share


@dataclass(frozen=True)
class Walk:
    """Rounds of drafting and verifying. `judged[i]` of them reached proposal i, `accepted[i]` accepted it, i from 0."""

    rounds: int
    tokens: int
    """Tokens committed by the rounds; an answer's first token comes from the prompt's pass and is not among them."""
    judged: tuple[int, ...]
    accepted: tuple[int, ...]

    def __add__(self, other: Walk) -> Walk:
        return Walk(
            self.rounds + other.rounds,
            self.tokens + other.tokens,
            tuple(a + b for a, b in zip(self.judged, other.judged, strict=True)),
            tuple(a + b for a, b in zip(self.accepted, other.accepted, strict=True)),
        )

    @property
    def acceptance_length(self) -> float | None:
        """Tokens committed per verifier pass, bonus included; None without any round."""
        return self.tokens / self.rounds if self.rounds else None

    @property
    def positions(self) -> tuple[float | None, ...]:
        """Acceptance rate at each position given that all before it were accepted; None where none was judged."""
        return tuple(a / j if j else None for a, j in zip(self.accepted, self.judged, strict=True))


def nowhere(steps: int) -> Walk:
    """A walk without rounds, for `steps` proposals each."""
    return Walk(0, 0, (0,) * steps, (0,) * steps)


def walk(accepted_lengths: Sequence[int], start: int, end: int, *, steps: int, is_stopped: bool = True) -> Walk:
    """Walk through one answer: tokens `start` to `end` - 1 of a document, the first of them given by the prompt's pass.

    `accepted_lengths[s]` is how many of at most `steps` proposals in a row are the verifier's choice when token s is
    the newest. An answer that was cut off (not `is_stopped`) gets its last token from the verifier, as decoding under
    a limit of tokens does; a stop token may be an accepted proposal and then ends the round without another token.
    """
    judged, accepted = [0] * steps, [0] * steps
    rounds, newest = 0, start
    while newest < end - 1:
        left = end - 1 - newest
        limit = min(steps, left if is_stopped else left - 1)
        stood = min(accepted_lengths[newest], limit)
        for place in range(min(stood + 1, limit)):
            judged[place] += 1
        for place in range(stood):
            accepted[place] += 1
        rounds += 1
        newest += min(stood + 1, left)
    return Walk(rounds, max(0, end - 1 - start), tuple(judged), tuple(accepted))


def answers(loss_mask: torch.Tensor) -> list[tuple[int, int]]:
    """First token, and the one after the last, of every run of assistant tokens in a document's mask bool [length]."""
    edges = torch.diff(
        loss_mask.long(), prepend=torch.zeros(1, dtype=torch.int64), append=torch.zeros(1, dtype=torch.int64)
    )
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


@dataclass(frozen=True)
class Validation:
    """Figures of the held-out documents: `measured` as in training, over all positions, and the walk."""

    measured: Measured
    walk: Walk

    def figures(self) -> dict[str, float]:
        """Loss, accuracy by position, `walk_estimate` of the acceptance length, `walk_<i>` rates by position from 1."""
        found = divided(self.measured)
        if self.walk.acceptance_length is not None:
            found["walk_estimate"] = self.walk.acceptance_length
        rates = enumerate(self.walk.positions, start=1)
        return found | {f"walk_{place}": value for place, value in rates if value is not None}


def judged_documents(tokens: TokenDataset, options: ValidationOptions) -> list[int]:
    """Numbers of the held-out documents that are judged."""
    return tokens.holdout_documents[: options.documents]


@torch.no_grad()
def validate(
    objective: Objective,
    data: TrainingData,
    documents: Sequence[int],
    *,
    budget: int,
    ranks: Ranks = ALONE,
    between: Callable[[], None] = lambda: None,
) -> Validation:
    """Judge the draft on `documents`, in batches of `budget` tokens; processes divide them and get the same figures.

    `between` is called after every batch; what it raises ends the validation.
    """
    measured: Measured = {}
    steps = objective.steps
    own = nowhere(steps)
    for group in data.in_order(documents, budget):
        mine = share(data.tokens, group, ranks)
        batch = data.batch(mine)
        evaluation = objective.evaluate(batch, total=ranks.total)
        add_measured(measured, evaluation.measured)
        lengths = torch.zeros(batch.tokens, dtype=torch.int64)
        lengths[evaluation.accepted.newest] = evaluation.accepted.lengths
        start = 0
        for number, length in zip(mine, batch.lengths, strict=True):
            own += document_walk(data, number, lengths[start : start + length].tolist(), steps)
            start += length
        between()
    found = ranks.gathered((measured, own))
    return Validation(summed(part for part, _ in found), sum((part for _, part in found), nowhere(steps)))


def document_walk(data: TrainingData, number: int, accepted_lengths: Sequence[int], steps: int) -> Walk:
    """The walk through all answers of one document."""
    ids, mask = data.tokens.document(number)
    stops = data.tokens.origin.special_ids
    total = nowhere(steps)
    for start, end in answers(mask):
        is_stopped = end < len(ids) or int(ids[end - 1]) in stops
        total += walk(accepted_lengths, start, end, steps=steps, is_stopped=is_stopped)
    return total
