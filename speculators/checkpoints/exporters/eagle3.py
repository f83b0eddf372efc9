"""EAGLE-3 as its authors release it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from speculators.checkpoints.exporters.base import Export
from speculators.checkpoints.exporters.native import PLAIN, midlayer_tensors, native_config, refuse, without_embeddings

NAME = "eagle3"
TITLE = "EAGLE-3 (SafeAILab)"
KINDS = ("eagle3",)


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """The layers that are read stand at the top of the config, where vLLM looks; EAGLE's own code has fixed ones."""
    refuse(config, TITLE, **PLAIN)
    layers = list(config["eagle_aux_hidden_state_layer_ids"])
    written = {**native_config(config), "eagle_aux_hidden_state_layer_ids": layers}
    return Export(written, midlayer_tensors(config, without_embeddings(config, list(names))))
