"""How an XPress draft stands on disk: as a DFlash draft does, with its refiner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.dflash import layout as dflash
from speculators.algorithms.xpress.config import XPressConfig
from speculators.errors import UsageError

ARCHITECTURE = "XPressDraftModel"
IS_SERVED = False


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that other writers leave out; see `completed_config`."""
    for key in XPressConfig.OWN_KEYS:
        if key not in config:
            raise UsageError(f"config.json of the draft has no key {key!r}")
    return dflash.completed(config)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json with every key; those that are not known here are kept."""
    return dflash.written(config)


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    layer, rank, size = config["transformer_layer_config"], config["xpress_rank"], config["block_size"]
    hidden, inner = layer["hidden_size"], rank * config["xpress_mlp_ratio"]
    head = {
        "token_embed.weight": (layer["vocab_size"], rank),
        "down_h.weight": (rank, hidden),
        "down_g.weight": (rank, hidden),
        "in_proj.weight": (rank, 3 * rank),
        "mix_l": (rank, size, size),
        "mlp_gate.weight": (inner, rank),
        "mlp_up.weight": (inner, rank),
        "mlp_down.weight": (rank, inner),
        "readout.weight": (config["draft_vocab_size"], rank),
    }
    return {**dflash.tensors(config), **{f"refiner_head.{name}": shape for name, shape in head.items()}}


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What is wrong with a config in itself; vLLM does not know the type."""
    return [
        *dflash.shared_problems(config, layer),
        *(f"{key} is missing" for key in XPressConfig.OWN_KEYS if key not in config),
    ]
