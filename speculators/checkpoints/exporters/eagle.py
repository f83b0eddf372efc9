"""EAGLE-1, EAGLE-2 and HASS drafts as their authors release them, which is what vLLM loads for `method: eagle`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from speculators.algorithms.eagle.layout import refuses
from speculators.checkpoints.exporters.base import Export
from speculators.errors import UsageError

NAME = "eagle"
TITLE = "EAGLE-1 and EAGLE-2 (SafeAILab)"
KINDS = ("eagle", "hass")
"""The types of ours that can be said so."""


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why vLLM would not load a draft with this config.json, None where it would."""
    if refuses(config) is not None:
        return "the draft's `fc` has a bias, which vLLM does not load; train it with `fc_bias: false`"
    return None


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """A flat Llama config, and our own names.

    `config` is our `completed` config.json, `names` are the names of the draft's tensors. Raises UsageError for a draft
    that vLLM would not load.
    """
    if (why := refusal(config)) is not None:
        raise UsageError(why)
    layer = {key: value for key, value in config["transformer_layer_config"].items() if value is not None}
    written = {
        **layer,
        # vLLM makes EagleLlamaForCausalLM of it.
        "architectures": ["LlamaForCausalLM"],
        "bias": False,
        "torch_dtype": config.get("dtype", "bfloat16"),
    }
    return Export(written, {name: name for name in names})
