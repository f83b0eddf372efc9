"""What DFlash checkpoints outside this project, and those of drafts on its layers, have in common, written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.checkpoints.exporters.native import native_rope
from speculators.errors import UsageError

_LAYER_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "hidden_act", "rms_norm_eps", "max_position_embeddings"),
)
_WINDOW_KEYS = ("layer_types", "sliding_window", "use_sliding_window")


def block_config(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The keys that every reader of these formats knows, from our `config.json`."""
    layer = config["transformer_layer_config"]
    return {
        "architectures": [architecture],
        "model_type": "qwen3",
        **{key: layer[key] for key in _LAYER_KEYS},
        **native_rope(layer),
        **{key: layer[key] for key in _WINDOW_KEYS if "sliding_attention" in (layer.get("layer_types") or ())},
        # Where it is not said, layers with a window are causal within a block, and others are not.
        **({"is_causal": False} if config["sliding_window_non_causal"] else {}),
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": config["dtype"],
        "block_size": config["block_size"],
    }


def left(config: Mapping[str, Any]) -> list[int]:
    """The streams as ids of the layers whose output they are; raises UsageError for one that is none's."""
    ids = config["aux_hidden_state_layer_ids"]
    if 0 in ids:
        raise UsageError("the draft reads the embeddings of its verifier (layer id 0), which this format cannot say")
    return [layer - 1 for layer in ids]


def refuse_reduced(config: Mapping[str, Any], title: str) -> None:
    """Raise UsageError for a draft with a vocabulary of its own: readers give it the verifier's head."""
    own, whole = config["draft_vocab_size"], config["transformer_layer_config"]["vocab_size"]
    if own != whole:
        raise UsageError(
            f"the draft has {own} of the verifier's {whole} tokens; readers of {title} would give it the whole head"
        )
