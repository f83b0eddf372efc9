"""How a multi-token-prediction head stands on disk in our format; vLLM reads it in the verifier, stitched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.styles import HEAD
from speculators.errors import UsageError

ARCHITECTURE = "MtpDraftModel"
IS_SERVED = False


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy: nobody else writes such checkpoints, so no key was ever left out."""
    if not isinstance(config.get("transformer_layer_config"), Mapping):
        raise UsageError("config.json has no `transformer_layer_config`: it is not a checkpoint in speculators' format")
    return dict(config)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The head's part of config.json."""
    return dict(config)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor; embedding, head and final norm are the verifier's."""
    shape = MtpConfig.from_config_json(config)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = (count * shape.head_dim for count in (shape.attention_heads, shape.key_value_heads))
    asked = 2 * queries if shape.gates_output else queries
    own: Shapes = {
        "token_layernorm.weight": (hidden,),
        "hidden_layernorm.weight": (hidden,),
        "input_proj.weight": (hidden, 2 * hidden),
        "final_layernorm.weight": (hidden,),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (asked, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if shape.biases:
        own |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", asked), ("k", keys), ("v", keys))}
    if shape.norms_heads:
        own |= {f"self_attn.{name}_norm.weight": (shape.head_dim,) for name in "qk"}
    return {HEAD + name: size for name, size in own.items()}


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """Nothing that vLLM could misread: it does not read this format for this type."""
    return []
