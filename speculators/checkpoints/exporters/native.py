"""What all EAGLE-3 checkpoints outside this project have in common, written: a flat Llama config, `midlayer` or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.checkpoints.convert import RECORD
from speculators.errors import UsageError

_FIRST = "layers.0."


def native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that every reader of these formats knows, from our `config.json`."""
    layer = config["transformer_layer_config"]
    found = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_act": layer.get("hidden_act", "silu"),
        "hidden_size": layer["hidden_size"],
        "intermediate_size": layer["intermediate_size"],
        "num_hidden_layers": layer["num_hidden_layers"],
        "num_attention_heads": layer["num_attention_heads"],
        "num_key_value_heads": layer["num_key_value_heads"],
        "head_dim": layer.get("head_dim") or layer["hidden_size"] // layer["num_attention_heads"],
        "rms_norm_eps": layer["rms_norm_eps"],
        **native_rope(layer),
        "max_position_embeddings": layer["max_position_embeddings"],
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": config["dtype"],
        "vocab_size": layer["vocab_size"],
        "draft_vocab_size": config["draft_vocab_size"],
    }
    if config.get("target_hidden_size"):
        found["target_hidden_size"] = config["target_hidden_size"]
    return found


def native_rope(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of our decoder's config in transformers 4's two keys, which version 5 reads too."""
    rope = dict(layer.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", layer.get("rope_theta", 10000.0))
    return {"rope_theta": theta, "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope}


def left_layers(config: Mapping[str, Any]) -> list[int]:
    """The streams as ids of the layers that they leave; raises UsageError for one that leaves none."""
    ids = config["eagle_aux_hidden_state_layer_ids"]
    if 0 in ids:
        raise UsageError("the draft reads the embeddings of its verifier (layer id 0), which this format cannot say")
    return [layer - 1 for layer in ids]


def midlayer_tensors(config: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    """The format's name -> ours, with the one layer called midlayer."""
    if config["transformer_layer_config"]["num_hidden_layers"] != 1:
        raise UsageError("the draft has several layers, and this format has one")
    return {f"midlayer.{name.removeprefix(_FIRST)}" if name.startswith(_FIRST) else name: name for name in names}


def without_embeddings(config: Mapping[str, Any], names: list[str]) -> list[str]:
    """The tensors less the embeddings, where these are the verifier's: readers of the format take them from there."""
    record = config.get(RECORD)
    if record is not None:
        borrowed = "embed_tokens.weight" in record["attached"]
    else:
        borrowed = not config.get("embed_requires_grad") and not config.get("target_hidden_size")
    return [name for name in names if name != "embed_tokens.weight" or not borrowed]


def refuse(config: Mapping[str, Any], title: str, **flags: str) -> None:
    """Raise UsageError for a flag of the draft that readers of the format would pass over in silence."""
    for flag, what in flags.items():
        if config.get(flag):
            raise UsageError(
                f"the draft has {flag}: {what}; readers of {title} do not know it and would draft something else"
            )


PLAIN = {
    "norm_before_residual": "the normed state goes on, not the state itself",
    "norm_before_fc": "all streams are normed as one",
    "fc_norm": "each stream is normed",
    "norm_output": "the normed output is fed back",
}
"""What the first EAGLE-3 does not have."""
