"""How the draft stands on disk; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARCHITECTURE = "BigramDraftModel"
IS_SERVED = False  # by vLLM; the embedded engine serves it


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config)


def tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    size = config["transformer_layer_config"]["vocab_size"]
    return {"before.weight": (size, config["rank"]), "after.weight": (size, config["rank"])}


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    return []
