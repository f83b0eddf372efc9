"""NVIDIA ModelOpt's layout."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from speculators.checkpoints.convert import RECORD
from speculators.checkpoints.exporters.base import Export
from speculators.checkpoints.exporters.native import (
    PLAIN,
    left_layers,
    midlayer_tensors,
    native_config,
    refuse,
    without_embeddings,
)

NAME = "modelopt"
TITLE = "EAGLE-3 (NVIDIA ModelOpt)"
KINDS = ("eagle3",)


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """`d2t` without `t2d`; the layer keeps the name that it came with, else it is `layers.0`."""
    refuse(config, TITLE, **{flag: what for flag, what in PLAIN.items() if flag != "norm_before_fc"})
    section = {
        "eagle_aux_hidden_state_layer_ids": left_layers(config),
        "use_aux_hidden_state": True,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "use_mtp_layernorm": False,
    }
    if config["norm_before_fc"]:
        section["norm_before_fc"] = True
    kept = [name for name in without_embeddings(config, list(names)) if name != "t2d"]
    came_as_midlayer = (config.get(RECORD) or {}).get("layer") == "midlayer."
    tensors = midlayer_tensors(config, kept) if came_as_midlayer else {name: name for name in kept}
    return Export({**native_config(config), "eagle_config": section}, tensors)
