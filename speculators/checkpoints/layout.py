"""Which tensors an EAGLE-3 checkpoint holds, and of which shapes, according to its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from speculators.errors import UsageError

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
    """`config` with every key that older checkpoints lack, the decoder's own keys included; nothing is changed.

    Raises UsageError when `transformer_layer_config` is missing or of an unknown kind.
    """
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        raise UsageError("config.json has no `transformer_layer_config`: it is not a checkpoint in speculators' format")
    whole = {**ABSENT, **config}
    whole["transformer_layer_config"] = _completed_layer(layer)
    whole.setdefault("draft_vocab_size", whole["transformer_layer_config"]["vocab_size"])
    if whole["draft_vocab_size"] is None:
        whole["draft_vocab_size"] = whole["transformer_layer_config"]["vocab_size"]
    return whole


def _completed_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that a writer left out have transformers' default for that kind of model."""
    from transformers import AutoConfig

    kind = layer.get("model_type")
    if kind not in ("llama", "qwen3"):
        raise UsageError(f"transformer_layer_config.model_type is {kind!r}; an eagle3 draft is `llama` or `qwen3`")
    options = {key: value for key, value in layer.items() if key != "model_type"}
    defaults = AutoConfig.for_model(kind, **options).to_dict()
    return {**{key: value for key, value in defaults.items() if value is not None}, **layer}


def aux_layers(config: Mapping[str, Any]) -> int:
    """How many of the verifier's layers the draft reads."""
    ids = config.get("eagle_aux_hidden_state_layer_ids")
    if ids:
        return len(ids)
    return int(config["transformer_layer_config"].get("num_aux_hidden_states") or DEFAULT_AUX_LAYERS)


def eagle3_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, for a `completed` config."""
    layer = config["transformer_layer_config"]
    hidden, inner, vocabulary = layer["hidden_size"], layer["intermediate_size"], layer["vocab_size"]
    heads, groups = layer["num_attention_heads"], layer["num_key_value_heads"]
    size = layer.get("head_dim") or hidden // heads
    source = config["target_hidden_size"] or hidden
    streams, draft_vocabulary = aux_layers(config), config["draft_vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocabulary, source),
        "fc.weight": (hidden, streams * source),
        "norm.weight": (hidden,),
        "lm_head.weight": (draft_vocabulary, hidden),
        "layers.0.hidden_norm.weight": (hidden,),
    }
    if config["norm_before_fc"]:
        shapes["input_norm.weight"] = (streams * source,)
    if config["fc_norm"]:
        shapes.update({f"fc_norm.{i}.weight": (source,) for i in range(streams)})
    if draft_vocabulary != vocabulary:
        shapes.update({"d2t": (draft_vocabulary,), "t2d": (vocabulary,)})
    for i in range(layer["num_hidden_layers"]):
        width = hidden if i else 2 * hidden
        attention: dict[str, tuple[int, ...]] = {
            "q_proj.weight": (heads * size, width),
            "k_proj.weight": (groups * size, width),
            "v_proj.weight": (groups * size, width),
            "o_proj.weight": (hidden, heads * size),
        }
        if layer["model_type"] == "qwen3":
            attention |= {"q_norm.weight": (size,), "k_norm.weight": (size,)}
        if layer.get("attention_bias"):
            attention |= {
                name.replace("weight", "bias"): shape[:1] for name, shape in attention.items() if "proj" in name
            }
        shapes.update({f"layers.{i}.self_attn.{name}": shape for name, shape in attention.items()})
        mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        for name, shape in mlp.items():
            shapes[f"layers.{i}.mlp.{name}.weight"] = shape
            if layer.get("mlp_bias"):
                shapes[f"layers.{i}.mlp.{name}.bias"] = shape[:1]
        shapes[f"layers.{i}.input_layernorm.weight"] = (hidden,)
        shapes[f"layers.{i}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def tensor_problems(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the tensors of a checkpoint with this `completed` config: names, shapes, vocabulary maps."""
    expected = eagle3_tensors(config)
    problems = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in tensors]
    problems += [f"{name} is not a tensor of an eagle3 checkpoint" for name in tensors if name not in expected]
    problems += [
        f"{name} has the shape {list(tensors[name].shape)}, but config.json makes it {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    return problems or _vocabulary_problems(tensors)


def _vocabulary_problems(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    if d2t is None or t2d is None:
        return []
    if d2t.dtype != torch.int64 or t2d.dtype != torch.bool:
        return [f"d2t must be int64 and t2d bool; they are {_type(d2t)} and {_type(t2d)}"]
    targets = torch.arange(len(d2t)) + d2t
    if bool(((targets < 0) | (targets >= len(t2d))).any()) or not bool(t2d[targets].all()):
        return ["d2t and t2d disagree: d2t must hold offsets, target id = draft id + d2t[draft id]"]
    different, marked = len(set(targets.tolist())), int(t2d.sum())
    if not different == marked == len(targets):
        return [f"d2t maps {len(targets)} draft ids to {different} different tokens, and t2d marks {marked}"]
    return []


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
