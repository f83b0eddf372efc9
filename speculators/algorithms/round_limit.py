"""The most tokens that a draft can propose in a round, by its config.json: where it has heads, or blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RoundLimit:
    """So many `tokens`, and `why` no more, in words."""

    tokens: int
    why: str


def round_limit(config: Mapping[str, Any]) -> RoundLimit | None:
    """The limit of the draft with this config; None where it proposes as many as are wanted.

    A block's first slot is the newest token, which is known: it proposes one only with `sample_from_anchor`.
    """
    heads, size = config.get("num_heads"), config.get("block_size")
    if isinstance(heads, int):
        return RoundLimit(heads, f"the draft has {heads} heads")
    if isinstance(size, int):
        most = size if config.get("sample_from_anchor") else size - 1
        return RoundLimit(most, f"a block of {size} drafts {most}")
    return None


def round_problems(config: Mapping[str, Any]) -> list[str]:
    """A checkpoint whose own round is longer than its draft can make it."""
    methods = (config.get("speculators_config") or {}).get("proposal_methods") or [{}]
    tokens, limit = methods[0].get("speculative_tokens"), round_limit(config)
    if limit is None or not isinstance(tokens, int) or tokens <= limit.tokens:
        return []
    return [f"proposal_methods[0].speculative_tokens is {tokens}, and {limit.why}"]
