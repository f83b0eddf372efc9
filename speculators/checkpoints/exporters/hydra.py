"""Hydra as its authors release it, less the copy of the verifier's embedding, which their code has anyway."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speculators.checkpoints.exporters.base import Export
from speculators.errors import UsageError

if TYPE_CHECKING:
    import torch

NAME = "hydra"
TITLE = "Hydra"
KINDS = ("hydra",)

_THEIRS = (
    (re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)"), r"hydra_mlp.\1.\2.linear.\3"),
    (re.compile(r"blocks\.(\d+)\.residual\.(weight|bias)"), r"hydra_mlp.\1.0.res_connection.\2"),
    (re.compile(r"lm_heads\.(\d+)\.(weight|bias)"), r"hydra_lm_head.\1.\2"),
)


def export(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Export:
    """The authors' config and names; a bias of zero where an output layer has none, since theirs always has one.

    Raises UsageError for what the authors' code cannot hold: one output layer for all, a vocabulary of its own, and
    different blocks after a head's first, which are one block there.
    """
    import torch

    layer = config["transformer_layer_config"]
    if config["shared_head"]:
        raise UsageError("the draft has one output layer for all its heads, and the authors' has one for each")
    if config["draft_vocab_size"] != layer["vocab_size"]:
        raise UsageError("the draft has a part of the verifier's vocabulary, and the authors' has it whole")
    for head in range(config["num_heads"]):
        for block in range(2, layer["num_hidden_layers"]):
            for kind in ("weight", "bias"):
                name, first = (f"blocks.{head}.layers.{number}.{kind}" for number in (block, 1))
                if not torch.equal(tensors[name], tensors[first]):
                    raise UsageError(f"{name} is not {first}, and the authors' code has one block for both")
    written = {
        "hydra_num_heads": config["num_heads"],
        "hydra_num_layers": layer["num_hidden_layers"],
        "hydra_head_arch": "mlp",
        "grounded_heads": True,
        "hidden_state_offset": 0,
        "torch_dtype": config["dtype"],
    }
    made = {}
    if not config["head_bias"]:
        zero = torch.zeros(layer["vocab_size"], dtype=tensors["lm_heads.0.weight"].dtype)
        made = {f"hydra_lm_head.{head}.bias": zero for head in range(config["num_heads"])}
    return Export(written, {_their_name(name): name for name in tensors}, "hydra_lm_head.pt", made)


def _their_name(name: str) -> str:
    for pattern, theirs in _THEIRS:
        if match := pattern.fullmatch(name):
            return match.expand(theirs)
    return name
