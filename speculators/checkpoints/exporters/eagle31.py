"""EAGLE-3.1 as vLLM loads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from speculators.checkpoints.exporters.base import Export
from speculators.checkpoints.exporters.native import midlayer_tensors, native_config, without_embeddings

NAME = "eagle3.1"
TITLE = "EAGLE-3.1"
KINDS = ("eagle3",)

_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """Every flag written at the top of the config."""
    layers = list(config["eagle_aux_hidden_state_layer_ids"])
    flags = {flag: bool(config[flag]) for flag in _FLAGS}
    written = {**native_config(config), **flags, "eagle_aux_hidden_state_layer_ids": layers}
    return Export(written, midlayer_tensors(config, without_embeddings(config, list(names))))
