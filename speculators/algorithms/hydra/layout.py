"""How a Hydra draft stands on disk. The embeddings it reads are the verifier's, and are not saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes, vocabulary_tensors
from speculators.algorithms.heads import layout as heads
from speculators.algorithms.round_limit import round_problems

ARCHITECTURE = "HydraDraftModel"
IS_SERVED = False

KEYS = ("draft_vocab_size", "num_heads", "shared_head", "aux_hidden_state_layer_ids")
SIZES = ("hidden_size", "vocab_size", "num_hidden_layers")


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config`, when it has every key; older drafts do not say that they have no `head_bias`."""
    return {"head_bias": False, **heads.completed(config, KEYS, SIZES)}


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json, as it is."""
    return completed(config)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    layer = config["transformer_layer_config"]
    hidden = layer["hidden_size"]
    shapes: Shapes = {}
    for head in range(config["num_heads"]):
        shapes[f"blocks.{head}.residual.weight"] = (hidden, (head + 2) * hidden)
        shapes[f"blocks.{head}.residual.bias"] = (hidden,)
        for number in range(layer["num_hidden_layers"]):
            width = hidden if number else (head + 2) * hidden
            shapes[f"blocks.{head}.layers.{number}.weight"] = (hidden, width)
            shapes[f"blocks.{head}.layers.{number}.bias"] = (hidden,)
    outputs = heads.heads_tensors(config, hidden)
    if config["head_bias"]:
        outputs |= {name.replace("weight", "bias"): shape[:1] for name, shape in outputs.items()}
    return shapes | outputs | vocabulary_tensors(config)


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What is wrong in a config."""
    return round_problems(config)
