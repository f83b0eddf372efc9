"""What differs between families of verifiers and cannot be read from a config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GEMMA = {"rms_norm_eps": 1e-6, "head_dim": 256, "tie_word_embeddings": True}

OMITTED: Mapping[str, Mapping[str, Any]] = {
    "gemma": {**_GEMMA, "max_position_embeddings": 8192},
    "gemma2": {**_GEMMA, "max_position_embeddings": 8192, "final_logit_softcapping": 30.0},
    "gemma3_text": {
        **_GEMMA,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
    },
    "gemma4_text": {**_GEMMA, "max_position_embeddings": 131072},
}
"""By model type: values that published configs leave out when they are those of transformers' own class."""

SHIFTED_NORMS = (
    *("gemma", "gemma2", "gemma3", "gemma3_text"),
    *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
)
"""Model types whose RMSNorm multiplies by 1 + weight. Gemma 4's multiplies by the weight itself."""

NORM_EPSILON = {"nemotron_h": "layer_norm_epsilon"}
"""Model types with an RMSNorm whose epsilon has another name than `rms_norm_eps`."""

READS_IMAGES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Model types, of the whole model, whose images are read."""

PLAIN_HEAD_DIM = 128


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's part of a config.json, one level down in models with images; with the values it leaves out."""
    text = dict(config.get("text_config") or config)
    kind = str(text.get("model_type", config.get("model_type", "unknown")))
    if kind in NORM_EPSILON and NORM_EPSILON[kind] in text:
        text["rms_norm_eps"] = text[NORM_EPSILON[kind]]
    kinds = text.get("layers_block_type") or text.get("hybrid_override_pattern")  # one word or letter a layer
    if kinds and "num_hidden_layers" not in text:
        text["num_hidden_layers"] = len(kinds)
    if isinstance(config.get("tie_word_embeddings"), bool):
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    return {**OMITTED.get(kind, {}), **text, "model_type": kind}


def plain_attention(hidden_size: int, heads: int) -> tuple[int, int, int]:
    """Heads, key heads and head size of an ordinary attention layer of that width.

    For drafts of verifiers whose own attention is of another kind: latent attention has its sizes in other fields,
    and what stands in these is not what a draft could use.
    """
    if hidden_size % PLAIN_HEAD_DIM:
        return heads, heads, hidden_size // heads
    count = hidden_size // PLAIN_HEAD_DIM
    return count, 8 if count % 8 == 0 else count, PLAIN_HEAD_DIM
