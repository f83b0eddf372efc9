"""What the decoder needs of a verifier and of a draft: two protocols, so that it imports no engine and no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from speculators.layers.trees import AnyShape, Tree

Choose = Callable[[torch.Tensor], torch.Tensor]
"""Picks the draft's next tokens: draft ids int64 [B] from its logits [B, Vd]."""


class Cache(Protocol):
    """Keys and values of several sequences of different lengths (`layers/slot_cache.py`)."""

    def crop(self, rows: torch.Tensor, lengths: Any) -> None: ...

    def keep(self, row: int, start: int, kept: Sequence[int]) -> None: ...

    def move(self, source: int, destination: int) -> None: ...

    def turn(self, rows: torch.Tensor, positions: torch.Tensor) -> None: ...


class Output(Protocol):
    """`logits` [B, q or 1, V], `aux` [B, q, F]: the streams the draft reads."""

    @property
    def logits(self) -> torch.Tensor | None: ...

    @property
    def aux(self) -> torch.Tensor | None: ...


class Verifier(Protocol):
    """The model whose text is produced (`engines/transformers.py`)."""

    def new_cache(self, slots: int, capacity: int) -> Any: ...

    def forward(
        self, input_ids: torch.Tensor, cache: Any, rows: torch.Tensor, logits: Literal["all", "last"] | None
    ) -> Output:
        """Read `input_ids` [B, q] at the ends of slots `rows`, and advance those slots by q."""


class SeeingVerifier(Verifier, Protocol):
    """A verifier that reads images as well."""

    def forward(
        self,
        input_ids: torch.Tensor,
        cache: Any,
        rows: torch.Tensor,
        logits: Literal["all", "last"] | None,
        tree: Tree | None = None,
        images: Sequence[Sequence[Path]] | None = None,
    ) -> Output:
        """With `images`, of each row, `input_ids` are the beginnings of texts that have all of their tokens."""

    def positions(self, input_ids: torch.Tensor, images: Sequence[Sequence[Path]]) -> torch.Tensor:
        """The rotary positions [B, q] that a draft takes for texts [B, q] with these images."""


class TreeVerifier(Verifier, Protocol):
    """A verifier that reads trees as well."""

    def forward(
        self,
        input_ids: torch.Tensor,
        cache: Any,
        rows: torch.Tensor,
        logits: Literal["all", "last"] | None,
        tree: Tree | None = None,
    ) -> Output:
        """With a `tree`, `input_ids` [B, 1+N] are each row's newest token and the tree's nodes."""


class Proposal(Protocol):
    """A draft that continues text from the verifier's features (`algorithms/<name>/proposal.py`).

    Its cache holds position t once it has read the features of t and the token *after* it, so it is always one token
    of lookahead, and never a feature, ahead of the verifier.
    """

    target_ids: torch.Tensor | None
    """int64 [Vd]: the verifier's id of every draft id; None when the vocabularies are the same."""

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Ids of the verifier's streams that are its features, in their order."""

    @property
    def drafts_at_once(self) -> bool:
        """Whether all tokens come from one computation, whose size they share: then the full number is always drafted,
        as in training and in vLLM, also where an answer's limit leaves room for fewer."""

    def new_cache(self, slots: int, capacity: int) -> Any: ...

    def read(self, cache: Any, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        """Read positions with the verifier's features `aux` [B, m, F] and the tokens after them, `next_ids` [B, m].

        Advances the slots by m; the caller crops rows that had fewer.
        """

    def propose(
        self,
        cache: Any,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Choose | None,
    ) -> torch.Tensor:
        """Read the newly committed positions, then draft `k` tokens after them: verifier ids int64 [B, k].

        Row b holds `lengths[b]` positions and reads the first `counts[b]` of `next_ids` [B, m] and `aux` [B, m, F],
        which are the verifier's true features. Afterwards it holds `lengths[b] + counts[b]`: what the chain itself
        wrote is forgotten. `choose` None takes the most likely token; else it is called once for each of the `k`
        tokens, in their order, also by a draft that has the logits of all of them at once. A row with count 0 gets
        meaningless tokens.
        """


class ConfidentProposal(Proposal, Protocol):
    """A draft that may foretell which of its tokens stand, and so propose fewer."""

    @property
    def foretells_acceptance(self) -> bool:
        """Whether this one does."""

    def propose_confident(
        self,
        cache: Any,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Choose | None,
        least: float,
    ) -> tuple[torch.Tensor, list[int]]:
        """As `propose`, and how many tokens of each row [B] are foretold to stand together with a chance of `least`.

        Whether a row goes on to a token must follow from the tokens before it: were it decided by the token itself,
        tokens would not be proposed as often as their distribution says, and drawn texts would not be the verifier's.
        """


class TokenProposal(Proposal, Protocol):
    """A draft that reads the text alone: its features of a position are the token there, `aux` int64 [B, m, 1]."""

    @property
    def reads_tokens(self) -> Literal[True]: ...


class TreeProposal(Proposal, Protocol):
    """A draft that also proposes trees."""

    def propose_tree(
        self,
        cache: Any,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        shape: AnyShape,
    ) -> Tree:
        """Read as `propose` does, then draft a tree after each row; needs room for `shape.drafted` more positions."""
