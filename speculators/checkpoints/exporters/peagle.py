"""P-EAGLE as vLLM loads it by itself (method `eagle3`, with `parallel_drafting`)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from speculators.checkpoints.convert import RECORD
from speculators.checkpoints.exporters.base import Export
from speculators.checkpoints.exporters.native import (
    PLAIN,
    native_config,
    refuse,
    without_embeddings,
)

NAME = "peagle"
TITLE = "P-EAGLE"
KINDS = ("peagle",)

_FLAGS = ("norm_before_residual", "norm_before_fc")


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """The masked token, the flags and the layers that are read stand at the top of the config."""
    refuse(config, TITLE, **{flag: PLAIN[flag] for flag in ("fc_norm", "norm_output")})
    layers = list(config["eagle_aux_hidden_state_layer_ids"])
    written = {
        **native_config(config),
        **{flag: bool(config[flag]) for flag in _FLAGS},
        "num_aux_hidden_states": len(layers),  # vLLM sizes `fc` for three streams without it
        "eagle_aux_hidden_state_layer_ids": layers,
        "ptd_token_id": config["mask_token_id"],
    }
    kept = without_embeddings(config, list(names))
    first = (config.get(RECORD) or {}).get("layer", "layers.0.")
    return Export(written, {re.sub(r"^layers\.0\.", first, name): name for name in kept})
