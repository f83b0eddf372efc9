"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): its sizes, which are not those of ordinary attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Keys and values of every head come out of one latent vector, and part of a key is the same for all heads.

    A key has `plain_dim` channels that no position turns, and `turned_dim` that it does, shared by the `heads`; a value
    has `value_dim`. `query_rank` is the width of the latent vector of queries, 0 where they are projected at once.
    """

    heads: int
    plain_dim: int
    turned_dim: int
    value_dim: int
    key_value_rank: int
    query_rank: int = 0

    @classmethod
    def of_config(cls, text: Mapping[str, Any]) -> Latent | None:
        """What a decoder's config says; None of one with ordinary attention."""
        if not text.get("kv_lora_rank"):
            return None
        sizes = ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
        if not all(isinstance(text.get(name), int) for name in sizes):
            return None
        heads, plain, turned, value, rank = (int(text[name]) for name in sizes)
        return cls(
            heads=heads,
            plain_dim=plain,
            turned_dim=turned,
            value_dim=value,
            key_value_rank=rank,
            query_rank=int(text.get("q_lora_rank") or 0),
        )

    @property
    def key_dim(self) -> int:
        """Channels of a head's query and key."""
        return self.plain_dim + self.turned_dim

    @property
    def width(self) -> int:
        """Channels with which keys and values can lie side by side, the rest of either being zeros."""
        return max(self.key_dim, self.value_dim)


def score_factor(rope: Mapping[str, Any]) -> float:
    """What scores are multiplied by beyond 1/sqrt(d), in models whose positions were stretched by YaRN."""
    factor, weight = float(rope.get("factor") or 1.0), float(rope.get("mscale_all_dim") or 0.0)
    if rope.get("rope_type") != "yarn" or factor <= 1 or not weight:
        return 1.0
    return (0.1 * weight * math.log(factor) + 1.0) ** 2
