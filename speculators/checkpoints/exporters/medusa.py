"""A Medusa draft as vLLM loads it by itself (method `medusa`), with vLLM's own config keys; tensors keep their names.

vLLM (0.32) knows a reduced vocabulary (`token_map`) and then refuses to start: it misses that tensor among what it has
loaded. So output layers are exported over the whole vocabulary. A token that the draft does not have gets the mean of
the rows of those it has: the mean of numbers is never above the largest, so such a token is never the likeliest, and
the likeliest is all that vLLM proposes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speculators.checkpoints.exporters.base import Export

if TYPE_CHECKING:
    import torch

NAME = "medusa"
TITLE = "Medusa (vLLM)"
KINDS = ("medusa",)


def export(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Export:
    """`config.json` and tensors for vLLM, from those of a medusa checkpoint in the speculators format."""
    layer = config["transformer_layer_config"]
    exported = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": layer["hidden_size"],
        "vocab_size": layer["vocab_size"],
        "truncated_vocab_size": layer["vocab_size"],
        "num_heads": config["num_heads"],
        "num_hidden_layers": layer["num_hidden_layers"],
        "medusa_fc_bias": True,
        "original_lm_head": config["shared_head"],
        "dtype": config["dtype"],
    }
    weights = {name: value for name, value in tensors.items() if name not in ("d2t", "t2d")}
    if "t2d" in tensors:
        weights |= {name: _whole(rows, tensors["t2d"]) for name, rows in weights.items() if name.startswith("lm_head")}
    return Export(exported, {}, made=weights)


def _whole(rows: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """An output layer over the whole vocabulary [V, h] from its `rows` [Vd, h] of the tokens in `known` bool [V]."""
    whole = rows.float().mean(0).to(rows.dtype).expand(len(known), -1).clone()
    whole[known] = rows
    return whole
