"""How a DSpark draft stands on disk: as a DFlash draft does, with its heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.dflash import layout as dflash
from speculators.errors import UsageError

ARCHITECTURE = "DSparkDraftModel"
IS_SERVED = True

ABSENT: Mapping[str, Any] = {
    "markov_head_type": "vanilla",
    "enable_confidence_head": False,
    "confidence_head_with_markov": False,
}
"""What vLLM takes an absent key to mean, beside those of DFlash; `sample_from_anchor` is false for this type too."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that other writers leave out; see `completed_config`."""
    if "markov_rank" not in config:
        raise UsageError("config.json of the draft has no key 'markov_rank'")
    return dflash.completed({**ABSENT, **config})


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json with every key; those that are not known here are kept."""
    return dflash.written({**ABSENT, **config})


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    layer, rank = config["transformer_layer_config"], config["markov_rank"]
    shapes = dflash.tensors(config)
    shapes["markov_head.markov_w1.weight"] = (layer["vocab_size"], rank)
    shapes["markov_head.markov_w2.weight"] = (config["draft_vocab_size"], rank)
    hidden, kind = layer["hidden_size"], config["markov_head_type"]
    if kind == "gated":
        shapes |= {"markov_head.gate_proj.weight": (rank, hidden + rank), "markov_head.gate_proj.bias": (rank,)}
    elif kind == "rnn":
        shapes["markov_head.joint_proj.weight"] = (3 * rank, 2 * rank + hidden)
        shapes["markov_head.joint_proj.bias"] = (3 * rank,)
    if config["enable_confidence_head"]:
        width = hidden + (rank if config["confidence_head_with_markov"] else 0)
        shapes |= {"confidence_head.proj.weight": (1, width), "confidence_head.proj.bias": (1,)}
    return shapes


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What vLLM would refuse in a config, or read otherwise than it was meant."""
    found = dflash.shared_problems(config, layer)
    if any(dflash.windowed(layer)) and config.get("sliding_window_non_causal", True):
        found.append(
            "sliding_window_non_causal is true: vLLM makes a DSpark draft's windowed layers causal all the same"
        )
    if "markov_rank" not in config:
        found.append("markov_rank is missing")
    if "sample_from_anchor" not in config:
        found.append("sample_from_anchor is not written: readers disagree about its meaning, vLLM takes false")
    return found


def refuses(config: Mapping[str, Any]) -> str | None:
    """vLLM has no other Markov head than the vanilla one."""
    kind = config.get("markov_head_type", "vanilla")
    return None if kind == "vanilla" else f"with a Markov head of the type {kind}"
