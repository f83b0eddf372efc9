"""How a P-EAGLE draft stands on disk: as an EAGLE-3 draft does, with a mask token and its hidden state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.decoder_layout import Shapes, completed_config
from speculators.algorithms.eagle3 import layout as eagle3
from speculators.errors import UsageError

ARCHITECTURE = "PEagleDraftModel"
IS_SERVED = True

ABSENT: Mapping[str, Any] = {**eagle3.ABSENT, "norm_before_residual": False}
"""What vLLM takes an absent key of a peagle checkpoint to mean: of the residual, the opposite of eagle3's."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that other writers leave out; see `completed_config`."""
    if "mask_token_id" not in config:
        raise UsageError("config.json of the draft has no key 'mask_token_id'")
    return completed_config(config, ABSENT)


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The draft's part of config.json with every key; those that are not known here are kept."""
    whole = completed(config)
    layer = {**config["transformer_layer_config"], "num_aux_hidden_states": eagle3.aux_layers(whole)}
    layer.setdefault("head_dim", whole["transformer_layer_config"].get("head_dim"))
    return {**whole, "transformer_layer_config": layer}


def tensors(config: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor, for a `completed` config."""
    shapes = eagle3.tensors(config)
    return {**shapes, "mask_hidden": (1, 1, shapes["fc.weight"][1])}


def problems(config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
    """What vLLM would refuse in a config, or read otherwise than it was meant."""
    found = [problem for problem in eagle3.problems(config, layer) if not problem.startswith("norm_before_residual")]
    if "norm_before_residual" not in config:
        found.append("norm_before_residual is not written: readers disagree about its meaning, vLLM takes false")
    found += [
        f"{key} is true: vLLM does not read it for this type, and would serve the draft without"
        for key in ("fc_norm", "norm_output")
        if config.get(key)
    ]
    if type(config.get("mask_token_id")) is not int:
        found.append("mask_token_id must be a whole number: the token that stands for those not known yet")
    return found
