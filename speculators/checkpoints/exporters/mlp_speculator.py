"""An MLP speculator as its authors release it and vLLM's `mlp_speculator` reads it: every step's tensors written out.

Where steps share a tensor it is written for each of them: readers differ in which ones they look for. vLLM 0.32 has the
code that reads this, and keeps it switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speculators.checkpoints.exporters.base import Export

if TYPE_CHECKING:
    import torch

NAME = "mlp_speculator"
TITLE = "MLP speculator (IBM, vLLM)"
KINDS = ("mlp_speculator",)

THEIR_NAMES = {"embed_tokens": "emb", "proj": "proj", "norms": "ln", "lm_heads": "head"}
CANDIDATES = 5
"""How many candidates a tree of theirs has; nothing here depends on it."""


def export(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Export:
    """`config.json` and tensors, from those of an mlp_speculator checkpoint in the speculators format."""
    layer, heads = config["transformer_layer_config"], config["num_heads"]
    exported = {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "vocab_size": layer["vocab_size"],
        "emb_dim": layer["hidden_size"],
        "inner_dim": layer["intermediate_size"],
        "n_predict": heads,
        "n_candidates": CANDIDATES,
        "top_k_tokens_per_head": [CANDIDATES, *[1] * (heads - 1)],
        "tie_weights": config["tie_weights"],
        "scale_input": config["scale_input"],
        "dtype": config["dtype"],
    }
    weights = {}
    for step in range(heads):
        for ours, theirs in THEIR_NAMES.items():
            count = sum(name.startswith(f"{ours}.") and name.endswith(".weight") for name in tensors)
            for kind in ("weight", "bias") if ours == "norms" else ("weight",):
                weights[f"speculator.{theirs}.{step}.{kind}"] = tensors[f"{ours}.{min(step, count - 1)}.{kind}"]
    return Export(exported, {}, made=weights)
