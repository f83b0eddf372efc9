"""Heads for multi-token prediction as families' checkpoints have them: names and shapes written out, numbers random."""

from __future__ import annotations

from typing import Any

import torch

H, INNER, HEADS, KV, D, V, LAYERS = 16, 24, 4, 2, 8, 30, 2
EXPERTS, EXPERT = 3, 10
LATENT = {"kv_lora_rank": 6, "q_lora_rank": 5, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 8}
_AFTER_THE_LAST = (f"model.layers.{LAYERS}.", ("enorm", "hnorm", "eh_proj", "shared_head.norm"))
_OUTER = {
    "mimo": ("model.mtp_layers.0.", ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm")),
    "qwen": ("mtp.", ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")),
    "glm": _AFTER_THE_LAST,
    "deepseek": _AFTER_THE_LAST,
}
KINDS = ("mimo", "qwen", "glm", "qwen with experts", "glm with experts", "deepseek")
"""A style, and what there is besides; DeepSeek's have experts and latent attention."""


def style_of(kind: str) -> str:
    return kind.split()[0]


def has_copies(kind: str) -> bool:
    """Whether the verifier's embedding and head are repeated beside the head."""
    return style_of(kind) in ("glm", "deepseek")


def config(kind: str) -> dict[str, Any]:
    """The verifier's config.json."""
    model_type = {"qwen": "qwen3_next", "glm": "glm4_moe", "deepseek": "deepseek_v3"}.get(style_of(kind), "qwen2")
    said = {
        "model_type": model_type,
        "architectures": ["SomeForCausalLM"],
        "hidden_size": H,
        "intermediate_size": 2 * INNER,  # of the body; the head's own is another
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": D,
        "vocab_size": V,
        "rms_norm_eps": 1e-6,
        "num_nextn_predict_layers": 1,
    }
    few = {"num_experts_per_tok": 2, "moe_intermediate_size": EXPERT}
    if kind == "qwen with experts":
        said |= {"num_experts": EXPERTS, "shared_expert_intermediate_size": INNER, **few}
    elif kind in ("glm with experts", "deepseek"):
        said |= {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "routed_scaling_factor": 2.5, **few}
    return said | LATENT if kind == "deepseek" else said


def tensors(kind: str) -> dict[str, torch.Tensor]:
    """The head, without the copies; in bfloat16, but for the router's bias."""
    style = style_of(kind)
    prefix, (token, hidden, projection, final) = _OUTER[style]
    block = "mtp.layers.0." if style == "qwen" else prefix
    sizes: dict[str, tuple[int, ...]] = {f"{prefix}{name}.weight": (H,) for name in (token, hidden, final)}
    sizes[f"{prefix}{projection}.weight"] = (H, 2 * H)
    sizes |= {f"{block}{name}_layernorm.weight": (H,) for name in ("input", "post_attention")}
    sizes |= {f"{block}self_attn.{name}": size for name, size in _attention(style).items()}
    sizes |= {f"{block}mlp.{name}": size for name, size in _mlp(kind).items()}
    return {
        name: torch.randn(size) if name.endswith("correction_bias") else torch.randn(size).bfloat16()
        for name, size in sizes.items()
    }


def _attention(style: str) -> dict[str, tuple[int, ...]]:
    if style == "deepseek":
        return {
            "q_a_proj.weight": (5, H),
            "q_a_layernorm.weight": (5,),
            "q_b_proj.weight": (HEADS * 6, 5),
            "kv_a_proj_with_mqa.weight": (6 + 2, H),
            "kv_a_layernorm.weight": (6,),
            "kv_b_proj.weight": (HEADS * (4 + 8), 6),
            "o_proj.weight": (H, HEADS * 8),
        }
    asked = 2 * HEADS * D if style == "qwen" else HEADS * D
    sizes: dict[str, tuple[int, ...]] = {f"{name}_proj.weight": (KV * D, H) for name in "kv"}
    sizes |= {"q_proj.weight": (asked, H), "o_proj.weight": (H, HEADS * D)}
    if style == "qwen":
        return sizes | {f"{name}_norm.weight": (D,) for name in "qk"}
    return sizes | {f"{name}_proj.bias": (n * D,) for name, n in (("q", HEADS), ("k", KV), ("v", KV))}


def _mlp(kind: str) -> dict[str, tuple[int, ...]]:
    def gated(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
        sizes = {"gate": (inner, H), "up": (inner, H), "down": (H, inner)}
        return {f"{prefix}{name}_proj.weight": size for name, size in sizes.items()}

    if kind in ("mimo", "qwen", "glm"):
        return gated("", INNER)
    sizes: dict[str, tuple[int, ...]] = {"gate.weight": (EXPERTS, H)}
    for number in range(EXPERTS):
        sizes |= gated(f"experts.{number}.", EXPERT)
    if style_of(kind) == "qwen":
        return sizes | gated("shared_expert.", INNER) | {"shared_expert_gate.weight": (1, H)}
    return sizes | gated("shared_experts.", EXPERT) | {"gate.e_score_correction_bias": (EXPERTS,)}
