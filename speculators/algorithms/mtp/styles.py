"""How families of verifiers build their multi-token-prediction head, and what its outer tensors are called there.

A style says what a decoder layer around two norms and a projection leaves open. Each of these is read from vLLM's
model of the family, because there the head will be served; a difference would only ever show as a lower acceptance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

HEAD = "mtp_layers.0."
"""What the names of the head's tensors begin with in a checkpoint of ours."""

ROUTER_BIAS = "mlp.gate.e_score_correction_bias"
"""The one tensor that is not trained; families keep it in float32, as rounding it would choose other experts."""


@dataclass(frozen=True)
class Style:
    """One way to build the head.

    `embedding_first`: the projection reads [embedding; state], else [state; embedding]. `reads_normed`: the verifier's
    state is taken after its final norm. `passes_normed`: the next step gets the state after the head's own last norm.
    `blanks_first`: the embedding beside position 0 is zero. `shifts_norms`: every norm multiplies by 1 + weight.
    `names`: what the outer tensors are called, for those that are not called as here.
    """

    embedding_first: bool
    reads_normed: bool
    passes_normed: bool
    blanks_first: bool
    shifts_norms: bool
    names: Mapping[str, str]
    copies: tuple[str, ...] = ()
    """Tensors of the head that repeat the verifier's embedding or head."""


# vLLM: glm4_moe_mtp.py, glm4_moe_lite_mtp.py. `model.layers.N.*`, with N the number of the verifier's layers
_GLM = Style(
    embedding_first=True,
    reads_normed=True,
    passes_normed=False,
    blanks_first=True,
    shifts_norms=False,
    names={
        "token_layernorm.weight": "enorm.weight",
        "hidden_layernorm.weight": "hnorm.weight",
        "input_proj.weight": "eh_proj.weight",
        "final_layernorm.weight": "shared_head.norm.weight",
        **{
            f"mlp.shared_expert.{part}_proj.weight": f"mlp.shared_experts.{part}_proj.weight"
            for part in ("gate", "up", "down")
        },
    },
    copies=("embed_tokens.weight", "shared_head.head.weight"),
)

STYLES = {
    # vLLM: mimo_mtp.py. `model.mtp_layers.0.*`
    "mimo": Style(
        embedding_first=False,
        reads_normed=False,
        passes_normed=True,
        blanks_first=True,
        shifts_norms=False,
        names={},
    ),
    # vLLM: qwen3_next_mtp.py, qwen3_5_mtp.py. `mtp.*`
    "qwen": Style(
        embedding_first=True,
        reads_normed=True,
        passes_normed=True,
        blanks_first=False,
        shifts_norms=True,
        names={
            "token_layernorm.weight": "pre_fc_norm_embedding.weight",
            "hidden_layernorm.weight": "pre_fc_norm_hidden.weight",
            "input_proj.weight": "fc.weight",
            "final_layernorm.weight": "norm.weight",
        },
    ),
    "glm": _GLM,
    # vLLM: deepseek_mtp.py
    "deepseek": replace(_GLM, passes_normed=True),
}


def style_of(model_type: str) -> str:
    """The style that vLLM computes for verifiers of a type of its config.json."""
    if model_type.startswith(("qwen3_next", "qwen3_5")):
        return "qwen"
    if model_type.startswith(("deepseek", "glm_moe_dsa")):
        return "deepseek"
    return "glm" if model_type.startswith("glm") else "mimo"
