"""DFlash, first and second version, as its authors release it, which is also what vLLM and SGLang load."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from speculators.algorithms.dflash2.config import DFlash2Config
from speculators.checkpoints.exporters.base import Export
from speculators.checkpoints.exporters.block_drafts import block_config, left, refuse_reduced
from speculators.errors import UsageError

NAME = "dflash"
TITLE = "DFlash (z-lab)"
KINDS = ("dflash", "dflash2")


def export(config: Mapping[str, Any], names: Collection[str]) -> Export:
    """A flat Qwen3 config with a `dflash_config`, and our own names."""
    refuse_reduced(config, TITLE)
    if config["sample_from_anchor"]:
        raise UsageError(f"the anchor's slot of the draft predicts; readers of {TITLE} would leave its token out")
    second = config["speculators_model_type"] == "dflash2"
    section = {
        "target_layer_ids": left(config),
        "mask_token_id": config["mask_token_id"],
        **{key: config[key] for key in DFlash2Config.OWN_KEYS if second},
    }
    written = block_config(config, "DFlash2DraftModel" if second else "DFlashDraftModel")
    return Export({**written, "dflash_config": section}, {name: name for name in names})
