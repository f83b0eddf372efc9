"""Which chains a packed batch has: where they are rooted, how long each lives, and which keys they see.

The chain rooted at position t starts from the verifier's features of t and the token after it, x_{t+1}: what a draft
has when x_{t+1} is the newest committed token. Its step j reads x_{t+1+j} and predicts x_{t+2+j}; the verifier's own
distribution for that is p_{t+1+j}. Drafting happens only inside an answer, so a chain is rooted, and its step j counts,
where the newest token x_{t+1+j} and the one to be predicted, x_{t+2+j}, are both the assistant's: not before an
answer's first token (the prompt's pass gives that one), not after its last, never across the end of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from speculators.layers.documents import Documents, DocumentSpan

if TYPE_CHECKING:
    from speculators.algorithms.base import Batch


@dataclass(frozen=True)
class Chains:
    """The chains of a batch, A of them, and the context positions whose keys they see, C of them.

    All indices are into the packed batch unless said otherwise. `alive[j]` lists the numbers of the chains whose step
    j counts; they get fewer with j, and only the ends of answers lose theirs.
    """

    context: torch.Tensor
    """int64 [C]: of every document with chains, all positions up to its last root."""
    roots: torch.Tensor
    """int64 [A], ascending."""
    in_context: torch.Tensor
    """int64 [A]: where each root stands in `context`."""
    starts: torch.Tensor
    """int64 [C]: first token of each context position's document."""
    alive: tuple[torch.Tensor, ...]
    """One int64 [A_j] a step."""
    documents: Documents
    """Queries are chains, keys are context positions."""
    whole_documents: Documents
    """Queries and keys are both context positions."""
    numbers: torch.Tensor
    """int64 [A]: which document of the batch each chain is in."""
    turns: torch.Tensor | None = None
    """int64 [C]: rotary positions that are not the places in the documents."""

    @property
    def positions(self) -> torch.Tensor:
        """Rotary position of each context position: its place in its own document unless told otherwise, int64 [C].

        A chain's later steps go on from its root's, one by one: they are text.
        """
        return self.context - self.starts if self.turns is None else self.turns


def chains_of(batch: Batch, steps: int) -> Chains:
    """The chains of a batch, for `steps` steps each."""
    chains = find_chains(batch.loss_mask.cpu(), batch.lengths, steps)
    return chains if batch.positions is None else replace(chains, turns=batch.positions[chains.context])


def find_chains(loss_mask: torch.Tensor, lengths: Sequence[int], steps: int) -> Chains:
    """The chains from a batch's `loss_mask` bool [N] and its documents' `lengths`, for `steps` steps each.

    Works on the CPU; documents without any chain are left out of everything.
    """
    drafts = torch.zeros(len(loss_mask) + steps + 1, dtype=torch.bool)  # a draft may start with this newest token
    drafts[: max(0, len(loss_mask) - 1)] = loss_mask[:-1] & loss_mask[1:]
    ends = torch.tensor(list(lengths), dtype=torch.int64).cumsum(0)
    drafts[ends - 1] = False
    contexts: list[torch.Tensor] = []
    roots: list[torch.Tensor] = []
    inside: list[torch.Tensor] = []
    starts: list[torch.Tensor] = []
    numbers: list[torch.Tensor] = []
    spans: list[DocumentSpan] = []
    whole: list[DocumentSpan] = []
    chains = keys = 0
    for number, (length, end) in enumerate(zip(lengths, ends.tolist(), strict=True)):
        start = end - length
        own = drafts[start + 1 : end].nonzero()[:, 0]  # relative to the document
        if not len(own):
            continue
        context = torch.arange(int(own[-1]) + 1)
        rows = slice(keys, keys + len(context))
        spans.append(DocumentSpan(slice(chains, chains + len(own)), rows, own + 1))
        whole.append(DocumentSpan(rows, rows, context + 1))
        contexts.append(context + start)
        roots.append(own + start)
        inside.append(own + keys)
        starts.append(torch.full_like(context, start))
        numbers.append(torch.full_like(own, number))
        chains, keys = chains + len(own), keys + len(context)
    if not roots:
        nothing = torch.empty(0, dtype=torch.int64)
        return Chains(nothing, nothing, nothing, nothing, (nothing,) * steps, Documents(()), Documents(()), nothing)
    rooted = torch.cat(roots)
    lives = torch.stack([drafts[rooted + 1 + step] for step in range(steps)]).cumprod(0).bool()
    return Chains(
        context=torch.cat(contexts),
        roots=rooted,
        in_context=torch.cat(inside),
        starts=torch.cat(starts),
        alive=tuple(living.nonzero()[:, 0] for living in lives),
        documents=Documents(tuple(spans)),
        whole_documents=Documents(tuple(whole)),
        numbers=torch.cat(numbers),
    )


def documents_of(chains: Chains, some: torch.Tensor) -> Documents:
    """`chains.documents` for the chains numbered `some` (int64, ascending) alone, without documents that have none."""
    spans = []
    for document in chains.documents:
        bounds = torch.tensor([document.queries.start, document.queries.stop])
        start, stop = torch.searchsorted(some, bounds).tolist()
        if start < stop:
            visible = document.visible[some[start:stop] - document.queries.start]
            spans.append(DocumentSpan(slice(start, stop), document.keys, visible))
    return Documents(tuple(spans))


def some_chains(chains: Chains, kept: torch.Tensor) -> Chains:
    """Only the chains numbered `kept` (int64, ascending); they see what they saw."""
    alive = []
    for numbers in chains.alive:
        places = torch.searchsorted(kept, numbers).clamp(max=max(0, len(kept) - 1))
        alive.append(places[kept[places] == numbers] if len(kept) else numbers[:0])
    return replace(
        chains,
        roots=chains.roots[kept],
        in_context=chains.in_context[kept],
        alive=tuple(alive),
        documents=documents_of(chains, kept),
        numbers=chains.numbers[kept],
    )
