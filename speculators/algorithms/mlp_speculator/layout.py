"""How an MLP speculator stands on disk: one tensor where steps share it. Nothing of the verifier's is saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.heads import layout as heads
from speculators.algorithms.round_limit import round_problems

ARCHITECTURE = "MLPSpeculatorDraftModel"
IS_SERVED = False

KEYS = ("num_heads", "tie_weights", "scale_input", "aux_hidden_state_layer_ids")
SIZES = ("hidden_size", "intermediate_size", "vocab_size")


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config`, when it has every key."""
    return heads.completed(config, KEYS, SIZES)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json, as it is."""
    return completed(config)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    layer = config["transformer_layer_config"]
    hidden, inner, vocabulary = layer["hidden_size"], layer["intermediate_size"], layer["vocab_size"]
    shapes: Shapes = {}
    for step in range(1 if config["tie_weights"] else config["num_heads"]):
        shapes[f"embed_tokens.{step}.weight"] = (vocabulary, inner)
        shapes[f"norms.{step}.weight"] = (inner,)
        shapes[f"norms.{step}.bias"] = (inner,)
        shapes[f"lm_heads.{step}.weight"] = (vocabulary, inner)
    for step in range(min(2, config["num_heads"]) if config["tie_weights"] else config["num_heads"]):
        shapes[f"proj.{step}.weight"] = (inner, inner if step else hidden)
    return shapes


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What is wrong in a config."""
    return round_problems(config)
