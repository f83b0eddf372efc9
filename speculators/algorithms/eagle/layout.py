"""How an EAGLE-1 draft stands on disk: the keys of its `config.json`, and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes, completed_config, layer_tensors

ARCHITECTURE = "EagleDraftModel"
IS_SERVED = False
VLLM_METHOD = "eagle"
"""vLLM has no loader for this format; it loads an export in the original's (`checkpoints/exporters/eagle.py`)."""

ABSENT: Mapping[str, Any] = {"fc_bias": False, "tie_word_embeddings": False}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that a writer left out; see `completed_config`."""
    return completed_config(config, ABSENT)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json with every key; those that are not known here are kept."""
    return {**completed(config), "transformer_layer_config": {**config["transformer_layer_config"]}}


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config; norm and head are the verifier's and not among them."""
    layer = config["transformer_layer_config"]
    hidden = layer["hidden_size"]
    shapes: Shapes = {"embed_tokens.weight": (layer["vocab_size"], hidden), "fc.weight": (hidden, 2 * hidden)}
    if config["fc_bias"]:
        shapes["fc.bias"] = (hidden,)
    shapes |= layer_tensors(layer, 0, hidden)
    del shapes["layers.0.input_layernorm.weight"]
    return shapes


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What is wrong in a config itself."""
    found = []
    if layer.get("model_type") != "llama":
        found.append(f"transformer_layer_config.model_type is {layer.get('model_type')!r}; EAGLE-1 drafts are llama")
    if layer.get("num_hidden_layers", 1) != 1:
        found.append(f"transformer_layer_config.num_hidden_layers is {layer['num_hidden_layers']}, it must be 1")
    if config.get("draft_vocab_size") not in (None, layer.get("vocab_size")):
        found.append("draft_vocab_size differs from the verifier's: an EAGLE-1 draft has the verifier's own head")
    return found


def refuses(config: Mapping[str, Any]) -> str | None:
    """vLLM's own form has no bias there."""
    return "with `fc_bias: true`" if config.get("fc_bias") else None
