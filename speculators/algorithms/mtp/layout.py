"""How a multi-token-prediction head stands on disk in our format; vLLM reads it in the verifier, stitched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.styles import HEAD, ROUTER_BIAS
from speculators.errors import UsageError
from speculators.verifiers.latent import Latent
from speculators.verifiers.mixture import Mixture

ARCHITECTURE = "MtpDraftModel"
IS_SERVED = False
VLLM_METHOD = "mtp"
UNROUNDED = (HEAD + ROUTER_BIAS,)


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
    hidden = shape.hidden_size
    own: Shapes = {
        "token_layernorm.weight": (hidden,),
        "hidden_layernorm.weight": (hidden,),
        "input_proj.weight": (hidden, 2 * hidden),
        "final_layernorm.weight": (hidden,),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **(_attention(shape) if shape.latent is None else _latent_attention(shape, shape.latent)),
        **(
            _gated_mlp("mlp.", hidden, shape.intermediate_size)
            if shape.mixture is None
            else _experts(hidden, shape.mixture)
        ),
    }
    return {HEAD + name: size for name, size in own.items()}


def _attention(shape: MtpConfig) -> Shapes:
    hidden = shape.hidden_size
    queries, keys = (count * shape.head_dim for count in (shape.attention_heads, shape.key_value_heads))
    asked = 2 * queries if shape.gates_output else queries
    own: Shapes = {
        "self_attn.q_proj.weight": (asked, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
    }
    if shape.biases:
        own |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", asked), ("k", keys), ("v", keys))}
    if shape.norms_heads:
        own |= {f"self_attn.{name}_norm.weight": (shape.head_dim,) for name in "qk"}
    return own


def _latent_attention(shape: MtpConfig, latent: Latent) -> Shapes:
    hidden, rank = shape.hidden_size, latent.query_rank
    queries, compressed = latent.heads * latent.key_dim, latent.key_value_rank + latent.turned_dim
    written_out = latent.heads * (latent.plain_dim + latent.value_dim)
    own: Shapes = {
        "self_attn.kv_a_proj_with_mqa.weight": (compressed, hidden),
        "self_attn.kv_a_layernorm.weight": (latent.key_value_rank,),
        "self_attn.kv_b_proj.weight": (written_out, latent.key_value_rank),
        "self_attn.o_proj.weight": (hidden, latent.heads * latent.value_dim),
    }
    if rank:
        own |= {"self_attn.q_a_proj.weight": (rank, hidden), "self_attn.q_a_layernorm.weight": (rank,)}
        own["self_attn.q_b_proj.weight"] = (queries, rank)
    else:
        own["self_attn.q_proj.weight"] = (queries, hidden)
    if shape.biases:
        own |= {"self_attn.kv_a_proj_with_mqa.bias": (compressed,), "self_attn.o_proj.bias": (hidden,)}
        own |= {"self_attn.q_a_proj.bias": (rank,)} if rank else {}
    return own


def _experts(hidden: int, mixture: Mixture) -> Shapes:
    own: Shapes = {"mlp.gate.weight": (mixture.count, hidden)}
    if mixture.corrects:
        own[ROUTER_BIAS] = (mixture.count,)
    for number in range(mixture.count):
        own |= _gated_mlp(f"mlp.experts.{number}.", hidden, mixture.intermediate_size)
    if mixture.shared_size:
        own |= _gated_mlp("mlp.shared_expert.", hidden, mixture.shared_size)
    if mixture.gates_shared:
        own["mlp.shared_expert_gate.weight"] = (1, hidden)
    return own


def _gated_mlp(prefix: str, hidden: int, inner: int) -> Shapes:
    sizes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {f"{prefix}{part}_proj.weight": size for part, size in sizes.items()}


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """Nothing that vLLM could misread: it does not read this format for this type."""
    return []
