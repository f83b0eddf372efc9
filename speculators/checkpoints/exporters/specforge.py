"""SpecForge's layout, which SGLang serves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from speculators.checkpoints.exporters.base import Export
from speculators.checkpoints.exporters.native import (
    PLAIN,
    left_layers,
    midlayer_tensors,
    native_config,
    refuse,
    without_embeddings,
)

NAME = "specforge"
TITLE = "EAGLE-3 (SpecForge)"
KINDS = ("eagle3",)


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """Layers are named by what leaves them; embeddings that are the verifier's stay there."""
    refuse(config, TITLE, **{flag: what for flag, what in PLAIN.items() if flag != "fc_norm"})
    written = native_config(config)
    written["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": left_layers(config), "use_aux_hidden_state": True}
    if config["fc_norm"]:
        written |= {"fc_norm": True, "norm_output": True}  # SpecForge's norm before the head, which all drafts have
    return Export(written, midlayer_tensors(config, without_embeddings(config, list(names))))
