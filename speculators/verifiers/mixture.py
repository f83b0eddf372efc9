"""How a layer's experts share the work: a router chooses a few of them for every token; others may see all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The sizes of a layer's experts, and how they are chosen.

    Each of `count` gated MLPs has `intermediate_size` channels, and every token meets `per_token` of them. The router's
    scores are a softmax over all of them, or, with `corrects`, sigmoids, to which a fixed bias is added for the choice
    alone; then only the experts of the best `groups_per_token` of `groups` groups can be chosen. The chosen ones weigh
    as their scores say, scaled to a sum of one with `renormalizes`, and times `scale`. `shared_size` are the channels
    of the MLP that sees every token, 0 without one; with `gates_shared` a sigmoid of the token weighs it.
    """

    count: int
    per_token: int
    intermediate_size: int
    shared_size: int = 0
    gates_shared: bool = False
    corrects: bool = False
    groups: int = 1
    groups_per_token: int = 1
    renormalizes: bool = True
    scale: float = 1.0

    @classmethod
    def of_config(cls, text: Mapping[str, Any]) -> Mixture | None:
        """What a decoder's config says; None where it has no experts, or has them in words of its own."""
        count = next((text[name] for name in _COUNTS if isinstance(text.get(name), int)), 0)
        size = text.get("moe_intermediate_size")
        per_token = text.get("num_experts_per_tok")
        if not (count and isinstance(size, int) and isinstance(per_token, int)):
            return None
        shared = text.get("shared_expert_intermediate_size")  # of Qwen; DeepSeek and GLM say how many
        return cls(
            count=count,
            per_token=per_token,
            intermediate_size=size,
            shared_size=int(size * (text.get("n_shared_experts") or 0) if shared is None else shared),
            gates_shared=bool(shared),
            corrects="n_shared_experts" in text,
            groups=int(text.get("n_group") or 1),
            groups_per_token=int(text.get("topk_group") or 1),
            renormalizes=bool(text.get("norm_topk_prob", True)),
            scale=float(text.get("routed_scaling_factor") or 1.0),
        )
