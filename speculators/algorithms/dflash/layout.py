"""How a DFlash draft stands on disk: the keys of its `config.json`, its tensors, and what vLLM asks of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes, completed_config, layer_tensors, vocabulary_tensors
from speculators.algorithms.round_limit import round_problems
from speculators.errors import UsageError

ARCHITECTURE = "DFlashDraftModel"
IS_SERVED = True

ABSENT: Mapping[str, Any] = {
    "sample_from_anchor": False,
    "sliding_window_non_causal": True,
    "target_hidden_size": None,
    "tie_word_embeddings": False,
}
"""What vLLM takes an absent key to mean."""

REQUIRED = ("block_size", "aux_hidden_state_layer_ids", "mask_token_id")


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that other writers leave out; see `completed_config`."""
    for key in REQUIRED:
        if key not in config:
            raise UsageError(f"config.json of the draft has no key {key!r}")
    return completed_config(config, ABSENT)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json with every key; those that are not known here are kept."""
    whole = completed(config)
    layer = {**config["transformer_layer_config"]}
    layer.setdefault("head_dim", whole["transformer_layer_config"].get("head_dim"))
    return {**whole, "transformer_layer_config": layer}


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config; embeddings and a whole head are the verifier's."""
    layer = config["transformer_layer_config"]
    hidden = layer["hidden_size"]
    shapes: Shapes = {
        "fc.weight": (hidden, len(config["aux_hidden_state_layer_ids"]) * (config["target_hidden_size"] or hidden)),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    maps = vocabulary_tensors(config)
    if maps:
        shapes |= {"lm_head.weight": (config["draft_vocab_size"], hidden), **maps}
    for number in range(layer["num_hidden_layers"]):
        shapes |= layer_tensors(layer, number, hidden)
    return shapes


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What vLLM would refuse in a config, or read otherwise than it was meant."""
    found = shared_problems(config, layer)
    kinds = windowed(layer)
    if not config.get("sliding_window_non_causal", True) and not (kinds and all(kinds)):
        what = "vLLM then makes every layer causal within a block, those without a window too"
        found.append(f"sliding_window_non_causal is false: {what}")
    return found


def shared_problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """Those of all drafts on DFlash's layers."""
    found = [f"{key} is missing" for key in REQUIRED if key not in config]
    if layer.get("model_type") != "qwen3":
        found.append(
            f"transformer_layer_config.model_type is {layer.get('model_type')!r}; vLLM's block drafts are qwen3"
        )
    if layer.get("hidden_act", "silu") != "silu":
        found.append(f"transformer_layer_config.hidden_act is {layer['hidden_act']!r}; vLLM's block drafts have silu")
    if 0 in config.get("aux_hidden_state_layer_ids", ()):
        found.append("aux_hidden_state_layer_ids has 0, the embeddings: vLLM reads ids - 1 as outputs of layers")
    if any(windowed(layer)) and not (layer.get("sliding_window") and layer.get("use_sliding_window")):
        what = "transformer_layer_config has layers of sliding_attention"
        found.append(f"{what}, and vLLM reads their sliding_window only with use_sliding_window")
    return found + round_problems(config)


def windowed(layer: Mapping[str, Any]) -> list[bool]:
    """Which layers have a window, by the decoder's config; nothing where it does not say."""
    return [kind == "sliding_attention" for kind in layer.get("layer_types") or ()]
