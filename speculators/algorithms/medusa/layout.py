"""How a Medusa draft stands on disk: the names are those of vLLM's own Medusa, which reads an exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes, vocabulary_tensors
from speculators.algorithms.heads import layout as heads
from speculators.algorithms.round_limit import round_problems

ARCHITECTURE = "MedusaDraftModel"
IS_SERVED = False
VLLM_METHOD = "medusa"

KEYS = ("draft_vocab_size", "num_heads", "shared_head", "aux_hidden_state_layer_ids")
SIZES = ("hidden_size", "vocab_size", "num_hidden_layers")


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config`, when it has every key."""
    return heads.completed(config, KEYS, SIZES)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json, as it is."""
    return completed(config)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    layer = config["transformer_layer_config"]
    hidden = layer["hidden_size"]
    shapes: Shapes = {}
    for head in range(config["num_heads"]):
        for number in range(layer["num_hidden_layers"]):
            shapes[f"blocks.{head}.layers.{number}.weight"] = (hidden, hidden)
            shapes[f"blocks.{head}.layers.{number}.bias"] = (hidden,)
    return shapes | heads.heads_tensors(config, hidden) | vocabulary_tensors(config)


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What is wrong in a config."""
    return round_problems(config)
