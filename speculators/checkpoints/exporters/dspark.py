"""DSpark as DeepSpec saves it, less the copies of the verifier's embedding and head; vLLM takes these from there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from speculators.checkpoints.exporters.base import Export
from speculators.checkpoints.exporters.block_drafts import block_config, left, refuse_reduced
from speculators.errors import UsageError

NAME = "dspark"
TITLE = "DSpark (DeepSpec)"
KINDS = ("dspark",)

_KEYS = ("mask_token_id", "markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """A flat Qwen3 config with the draft's settings at the top, and our own names."""
    refuse_reduced(config, TITLE)
    if not config["sample_from_anchor"]:
        raise UsageError(f"the anchor's slot of the draft predicts nothing; readers of {TITLE} would take its token")
    written = block_config(config, "Qwen3DSparkModel")
    layers = {"layer_types": ["full_attention"] * config["transformer_layer_config"]["num_hidden_layers"]}
    settings = {"target_layer_ids": left(config), **{key: config[key] for key in _KEYS}}
    return Export({**layers, **written, **settings}, {name: name for name in names})
