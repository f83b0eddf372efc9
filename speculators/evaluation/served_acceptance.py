"""How often a served draft is accepted: the server's own counters, read before and after a measurement."""

from __future__ import annotations

from typing import Any

from speculators.engines.prometheus import by_position, parse

DRAFTS = "spec_decode_num_drafts_total"
ACCEPTED = "spec_decode_num_accepted_tokens_per_pos_total"


def served_acceptance(before: str, after: str) -> dict[str, Any]:
    """`acceptance_length` (tokens per pass of the verifier, its own included) and `positions` (conditional rates).

    `before` and `after` are texts of `/metrics`. Both figures are None where nothing was drafted in between; a rate is
    None where no pass came as far as its position.
    """
    drafts = sum(parse(after).get(DRAFTS, [])) - sum(parse(before).get(DRAFTS, []))
    if not drafts:
        return {"acceptance_length": None, "positions": None}
    first, last = by_position(before, ACCEPTED), by_position(after, ACCEPTED)
    first += [0.0] * (len(last) - len(first))  # a counter may appear only once it has counted
    accepted = [end - start for start, end in zip(first, last, strict=True)]
    reached = [drafts, *accepted[:-1]]
    return {
        "acceptance_length": 1 + sum(accepted) / drafts,
        "positions": [there / here if here else None for here, there in zip(reached, accepted, strict=True)],
    }
