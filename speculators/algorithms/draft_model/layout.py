"""How an independent draft stands on disk in our format; vLLM reads the same model as a plain one, exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.draft_model.config import DraftModelConfig
from speculators.errors import UsageError

ARCHITECTURE = "CausalDraftModel"
IS_SERVED = False
VLLM_METHOD = "draft_model"


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy: nobody else writes such checkpoints, so no key was ever left out."""
    if not isinstance(config.get("transformer_layer_config"), Mapping):
        raise UsageError("config.json has no `transformer_layer_config`: it is not a checkpoint in speculators' format")
    return dict(config)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json, as it is."""
    return completed(config)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor; names are the model's own, without `model.` before them."""
    shape = DraftModelConfig.from_config_json(config)
    hidden, inner, size = shape.hidden_size, shape.intermediate_size, shape.head_dim
    queries, keys = shape.attention_heads * size, shape.key_value_heads * size
    layer: Shapes = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if shape.input_biases:
        layer |= {f"self_attn.{one}_proj.bias": (rows,) for one, rows in (("q", queries), ("k", keys), ("v", keys))}
    if shape.output_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if shape.mlp_biases:
        layer |= {f"mlp.{one}_proj.bias": (rows,) for one, rows in (("gate", inner), ("up", inner), ("down", hidden))}
    if shape.norms_heads:
        layer |= {f"self_attn.{one}_norm.weight": (size,) for one in "qk"}
    whole: Shapes = {"embed_tokens.weight": (shape.vocab_size, hidden)}
    for number in range(shape.layers):
        whole |= {f"layers.{number}.{name}": sizes for name, sizes in layer.items()}
    whole["norm.weight"] = (hidden,)
    if not shape.tie_word_embeddings:
        whole["lm_head.weight"] = (shape.vocab_size, hidden)
    return whole


def plain_name(name: str) -> str:
    """What a tensor of ours is called in the model's own folder."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """Nothing that vLLM could misread: it does not read this format for this type."""
    return []
