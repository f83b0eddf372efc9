"""How a DFlash-2 draft stands on disk: as a DFlash draft does, with its convolutions and its selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.dflash import layout as dflash
from speculators.algorithms.dflash2.config import DFlash2Config
from speculators.errors import UsageError

ARCHITECTURE = "DFlash2DraftModel"
IS_SERVED = True


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that other writers leave out; see `completed_config`."""
    for key in DFlash2Config.OWN_KEYS:
        if key not in config:
            raise UsageError(f"config.json of the draft has no key {key!r}")
    return dflash.completed(config)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json with every key; those that are not known here are kept."""
    return dflash.written(config)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    layer, rank, taps = config["transformer_layer_config"], config["selector_rank"], config["conv_kernel_size"]
    hidden, vocabulary = layer["hidden_size"], layer["vocab_size"]
    shapes = dflash.tensors(config)
    for number in range(layer["num_hidden_layers"]):
        for name in ("attention_conv", "mlp_conv"):
            width = 2 * taps * (hidden // config["conv_group_size"])
            shapes[f"layers.{number}.{name}.base_kernel"] = (2, taps, hidden)
            shapes[f"layers.{number}.{name}.kernel_projection.weight"] = (width, hidden)
    shapes["candidate_selector.predecessor_codebook"] = (vocabulary, rank)
    shapes["candidate_selector.successor_codebook"] = (vocabulary, rank)
    shapes["candidate_selector.hidden_projection.weight"] = (rank, hidden)
    return shapes


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What vLLM would refuse in a config, or read otherwise than it was meant."""
    found = [
        *dflash.problems(config, layer),
        *(f"{key} is missing" for key in DFlash2Config.OWN_KEYS if key not in config),
    ]
    if config.get("draft_vocab_size") not in (None, layer.get("vocab_size")):
        found.append("draft_vocab_size is not the verifier's: the selector's tables are over the whole vocabulary")
    return found
