"""What drafts of heads have in common on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.errors import UsageError


def completed(config: Mapping[str, Any], keys: tuple[str, ...], sizes: tuple[str, ...]) -> dict[str, Any]:
    """`config`, when it has all `keys` and, in its `transformer_layer_config`, all `sizes`.

    Every key is written by us, and nobody else writes this kind: an absent one is an error, UsageError.
    """
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        raise UsageError("config.json has no `transformer_layer_config`: it is not a checkpoint in speculators' format")
    missing = [key for key in keys if key not in config] + [key for key in sizes if key not in layer]
    if missing:
        raise UsageError(f"config.json of the draft has no key '{missing[0]}'")
    return dict(config)


def heads_tensors(config: Mapping[str, Any], width: int) -> Shapes:
    """Output layers that read `width` channels: one a head, or `lm_head` for all."""
    names = ["lm_head"] if config["shared_head"] else [f"lm_heads.{number}" for number in range(config["num_heads"])]
    return {f"{name}.weight": (config["draft_vocab_size"], width) for name in names}
