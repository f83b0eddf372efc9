"""The draft's side of the loop: its cache, and the verifier's features that it has still to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from speculators.decoding.models import Choose, ConfidentProposal, Output, Proposal, TreeProposal
from speculators.decoding.request import Request
from speculators.decoding.sampling import Uniforms, distributions, draw
from speculators.layers.trees import AnyShape, Tree


@dataclass(frozen=True)
class Proposed:
    """One round's proposals for n sequences, as verifier ids [n][k].

    Where they were drawn: `draft_ids` [n][k] and the distributions `q` [n, k, Vd] they were drawn from, else None.
    `lengths` [n]: how many of each sequence's are proposed; None: all.
    """

    ids: torch.Tensor
    lengths: list[int] | None = None
    draft_ids: list[list[int]] | None = None
    q: torch.Tensor | None = None


class Drafter:
    """A proposal with a cache of `slots` rows and, for each row, up to k + 1 positions of features not yet read.

    With `least_confidence` above 0, a `ConfidentProposal` proposes no more tokens than it trusts so much to stand.
    """

    def __init__(self, proposal: Proposal, slots: int, capacity: int, k: int, least_confidence: float = 0.0) -> None:
        self._proposal, self._slots, self._k, self._least = proposal, slots, k, least_confidence
        self._cache: Any = proposal.new_cache(slots, capacity)
        self._features: torch.Tensor | None = None  # [slots, k+1, F]
        self._numbers = torch.arange(slots)
        self._reads_tokens: bool = getattr(proposal, "reads_tokens", False)

    @property
    def target_ids(self) -> torch.Tensor | None:
        """The verifier's id of every draft id; None when they are the same."""
        return self._proposal.target_ids

    def read(
        self,
        rows: Sequence[int],
        ids: torch.Tensor,
        out: Output,
        lengths: Sequence[int],
        turns: torch.Tensor | None = None,
    ) -> None:
        """Read all but the last of the prompts `ids` [B, m+1], of which a verifier pass read m positions or all.

        Row b really has `lengths[b]` of the m positions. `turns` [B, m or more] are rotary positions where they are
        not the places.
        """
        numbers = torch.tensor(rows)
        self._cache.crop(numbers, 0)
        if turns is not None:
            self._cache.turn(numbers, turns)
        if not any(lengths):
            return
        self._proposal.read(self._cache, numbers, ids[:, 1:], self._features_of(ids, out)[:, : ids.shape[1] - 1])
        self._cache.crop(numbers, lengths)

    def keep(
        self,
        rows: Sequence[int],
        ids: torch.Tensor,
        out: Output,
        start: int = 0,
        paths: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Keep the features of a verifier pass over `rows`, from its position `start` on, for the next round.

        It read the tokens `ids` [B, q].
        With `paths` the pass read trees, and of row b the positions 0 and `paths[b][i] + 1` are kept.
        """
        new = self._features_of(ids, out)[:, start:]
        if paths is not None:
            width = 1 + max(map(len, paths))
            padded = [[0, *(node + 1 for node in path), *[0] * (width - 1 - len(path))] for path in paths]
            new = new.gather(1, torch.tensor(padded, device=new.device)[..., None].expand(-1, -1, new.shape[-1]))
        if self._features is None:
            self._features = new.new_zeros(self._slots, self._k + 1, new.shape[-1])
        where = slice(len(rows)) if rows[-1] == len(rows) - 1 else list(rows)
        self._features[where, : new.shape[1]] = new

    def move(self, source: int, destination: int) -> None:
        """Put one row's sequence in another's place."""
        self._cache.move(source, destination)
        if self._features is not None:
            self._features[destination] = self._features[source]

    def propose(self, lengths: Sequence[int], unread: Sequence[list[int]], k: int, choose: Choose | None) -> Proposed:
        """Draft `k` tokens for the first len(unread) rows.

        Row b has read `lengths[b]` positions; `unread[b]` are the tokens after those whose features were kept.
        """
        drafted = self._k if self._proposal.drafts_at_once else k
        asked = self._cache, *self._next(unread, lengths), drafted, choose
        if not self._least:
            return Proposed(self._proposal.propose(*asked)[:, :k])
        proposal = cast("ConfidentProposal", self._proposal)  # the decoder asked for one
        ids, trusted = proposal.propose_confident(*asked, self._least)
        return Proposed(ids[:, :k], trusted)

    def grow(self, lengths: Sequence[int], unread: Sequence[list[int]], shape: AnyShape) -> Tree:
        """As `propose`, but a tree for each of the first len(unread) rows."""
        proposal = cast("TreeProposal", self._proposal)  # the decoder asked for one
        return proposal.propose_tree(self._cache, *self._next(unread, lengths), shape)

    def draw(
        self,
        lengths: Sequence[int],
        unread: Sequence[list[int]],
        k: int,
        requests: Sequence[Request],
        uniforms: Sequence[Uniforms],
    ) -> Proposed:
        """As `propose`, but each sequence's proposals are drawn with its own temperature, top-k and top-p.

        Every sequence that has something to read uses up as many numbers as a full round would need, so that its
        draws do not depend on how long the others' answers may be.
        """
        drawn: list[torch.Tensor] = []
        q: list[torch.Tensor] = []
        numbers = [
            stream.take(self._k) if tokens else [0.0] * self._k for stream, tokens in zip(uniforms, unread, strict=True)
        ]

        def choose(logits: torch.Tensor) -> torch.Tensor:
            q.append(distributions(logits, requests))
            drawn.append(draw(q[-1], [row[len(drawn)] for row in numbers]))
            return drawn[-1]

        proposed = self.propose(lengths, unread, k, choose)
        return replace(proposed, draft_ids=torch.stack(drawn, 1).tolist(), q=torch.stack(q, 1))

    def _next(
        self, unread: Sequence[list[int]], lengths: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Sequence[int], list[int]]:
        """What every proposal is asked with: rows, their next tokens [n, q] and features [n, q, F], lengths, counts."""
        assert self._features is not None  # noqa: S101  a row without kept features proposes nothing
        counts = [len(tokens) for tokens in unread]
        width, n = max(counts), len(counts)
        next_ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in unread])
        return self._numbers[:n], next_ids, self._features[:n, :width], lengths, counts

    def _features_of(self, ids: torch.Tensor, out: Output) -> torch.Tensor:
        """What the draft reads of the positions of a verifier's pass over `ids` [B, q]: [B, q, F]."""
        if self._reads_tokens:
            return ids[..., None]
        if out.aux is None:
            raise ValueError("the verifier gives no features: load it with the layers that the draft reads")
        return out.aux
