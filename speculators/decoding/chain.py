"""Which tokens of a proposed chain the verifier keeps: exactly its own distribution at every temperature.

Two rules. *Agreement*: the verifier chooses its own token at every position (its argmax, or a draw from p), and a
proposal stands while it is that token; exact for proposals that are no random draws. *Ratio* (Leviathan et al. 2023,
arXiv:2211.17192): a proposal x drawn from q stands with probability min(1, p(x)/q(x)); the first that falls is replaced
by a draw from (p - q)+, and after a chain that stands whole one more token is drawn from p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from speculators.decoding.sampling import Uniforms, draw


@dataclass(frozen=True)
class Verdict:
    """How many proposals stand, and the tokens to commit: those and one of the verifier's."""

    accepted: int
    tokens: list[int]


def agreement(own: Sequence[int], proposed: Sequence[int], limit: int) -> Verdict:
    """Keep proposals while they are the verifier's `own` choices; at most `limit` of them are looked at.

    `own` has at least `limit` + 1 tokens: its choice after each proposal, given that all before stand.
    """
    accepted = 0
    while accepted < limit and own[accepted] == proposed[accepted]:
        accepted += 1
    return Verdict(accepted, list(own[: accepted + 1]))


@dataclass(frozen=True)
class DraftSide:
    """One sequence's proposals as they were drawn: as verifier ids, as draft ids, and from which `q` [k, Vd].

    `target_ids` [Vd] is the verifier's id of every draft id; None when the vocabularies are the same.
    """

    proposed: Sequence[int]
    drawn: Sequence[int]
    q: torch.Tensor
    target_ids: torch.Tensor | None


def by_ratio(p: torch.Tensor, draft: DraftSide, uniforms: Uniforms, limit: int) -> Verdict:
    """Judge the first `limit` of the proposals, which were drawn from q, by the ratio rule.

    `p` [limit+1 or more, V] is the verifier's distribution at each position. Uses up one uniform number per proposal
    looked at and one for the last token.
    """
    steps = torch.arange(limit, device=p.device)
    p_of = p[steps, torch.tensor(draft.proposed[:limit], dtype=torch.int64, device=p.device)].tolist()
    q_of = draft.q[steps, torch.tensor(draft.drawn[:limit], dtype=torch.int64, device=p.device)].tolist()
    accepted = 0
    while accepted < limit and uniforms.take(1)[0] * q_of[accepted] < p_of[accepted]:
        accepted += 1
    weights = p[accepted]
    if accepted < limit:
        left = weights.clone()
        if draft.target_ids is None:
            left -= draft.q[accepted]
        else:
            left.index_add_(0, draft.target_ids, draft.q[accepted], alpha=-1)
        left.clamp_(min=0)
        # In exact arithmetic a rejection implies p != q; rounding may leave nothing, and then p is what q was.
        if float(left.sum()) > 0:
            weights = left
    own = int(draw(weights, uniforms.take(1)[0]))
    return Verdict(accepted, [*draft.proposed[:accepted], own])
