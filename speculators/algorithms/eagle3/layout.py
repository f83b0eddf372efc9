"""How an EAGLE-3 draft stands on disk: the keys of its `config.json`, its tensors, and what vLLM asks of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes, completed_config, layer_tensors, vocabulary_tensors

ARCHITECTURE = "Eagle3DraftModel"
IS_SERVED = True

ABSENT: Mapping[str, Any] = {
    "norm_before_residual": True,
    "norm_before_fc": False,
    "fc_norm": False,
    "norm_output": False,
    "embed_requires_grad": False,
    "target_hidden_size": None,
    "tie_word_embeddings": False,
}
"""What vLLM takes an absent key of an eagle3 checkpoint to mean; older writers left some of them out."""

DEFAULT_AUX_LAYERS = 3
"""Aux layers of a checkpoint that does not list them."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that older checkpoints lack; see `completed_config`."""
    return completed_config(config, ABSENT)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json with every key; those that are not known here are kept."""
    whole = completed(config)
    layer = {**config["transformer_layer_config"]}
    layer.setdefault("head_dim", whole["transformer_layer_config"].get("head_dim"))
    # vLLM sizes `fc` of a llama draft by this key alone, and by three when it is not there.
    layer["num_aux_hidden_states"] = aux_layers(whole)
    return {**whole, "transformer_layer_config": layer}


def aux_layers(config: Mapping[str, Any]) -> int:
    """How many of the verifier's layers the draft reads."""
    ids = config.get("eagle_aux_hidden_state_layer_ids")
    if ids:
        return len(ids)
    return int(config["transformer_layer_config"].get("num_aux_hidden_states") or DEFAULT_AUX_LAYERS)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    layer = config["transformer_layer_config"]
    hidden, vocabulary = layer["hidden_size"], layer["vocab_size"]
    source = config["target_hidden_size"] or hidden
    streams = aux_layers(config)
    shapes: Shapes = {
        "embed_tokens.weight": (vocabulary, hidden),
        "fc.weight": (hidden, streams * source),
        "norm.weight": (hidden,),
        "lm_head.weight": (config["draft_vocab_size"], hidden),
        "layers.0.hidden_norm.weight": (hidden,),
    }
    if config["norm_before_fc"]:
        shapes["input_norm.weight"] = (streams * source,)
    if config["fc_norm"]:
        shapes.update({f"fc_norm.{i}.weight": (source,) for i in range(streams)})
    shapes |= vocabulary_tensors(config)
    for number in range(layer["num_hidden_layers"]):
        shapes |= layer_tensors(layer, number, hidden if number else 2 * hidden)
    return shapes


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What vLLM would refuse in a config, or read otherwise than it was meant."""
    found = []
    if layer.get("model_type") not in ("llama", "qwen3"):
        found.append(f"transformer_layer_config.model_type is {layer.get('model_type')!r}; vLLM has llama and qwen3")
    found += [
        f"{key} is not written: readers disagree about its meaning, vLLM takes {str(value).lower()}"
        for key, value in ABSENT.items()
        if key not in config and isinstance(value, bool) and key.startswith(("norm", "fc"))
    ]
    streams = aux_layers(config)
    sized = layer.get("num_aux_hidden_states")
    if layer.get("model_type") == "llama" and (sized or 3) != streams:
        found.append(
            f"transformer_layer_config.num_aux_hidden_states is {sized}, but the draft reads {streams} layers: "
            "vLLM sizes fc by that key, and by 3 without it"
        )
    if config.get("norm_before_fc") and config.get("fc_norm"):
        found.append("norm_before_fc and fc_norm cannot both be true")
    return found
