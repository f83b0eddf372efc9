"""A training that begins with the draft of an earlier checkpoint instead of a fresh one."""

from __future__ import annotations

from pathlib import Path

import torch

from speculators.algorithms.base import DraftNetwork
from speculators.checkpoints.load import read_checkpoint
from speculators.errors import ArtifactMismatch

_MAPS = ("d2t", "t2d")


@torch.no_grad()
def begin_with(network: DraftNetwork, directory: Path) -> None:
    """Put a checkpoint's tensors in place of the network's own.

    Its type may be another one with the same tensors, as EAGLE-1's and HASS's, or one that this draft adds to, as
    DSpark to DFlash; what it adds is then left as it is. Raises ArtifactMismatch when a tensor is missing, unknown or
    of another shape, or when the two propose different tokens.
    """
    found, own = read_checkpoint(directory).tensors, network.state_dict()
    added = {name for name in own if set(name.split(".")) & set(network.added)}
    if not added & found.keys():
        own = {name: tensor for name, tensor in own.items() if name not in added}
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{name} is no tensor of this draft" for name in found if name not in own]
    problems += [
        f"{name} has the shape {list(found[name].shape)}, the draft's has {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if not problems:
        problems = [
            f"{name} differs: its vocabulary was made from other data"
            for name in _MAPS
            if name in own and not torch.equal(own[name].cpu(), found[name])
        ]
    if problems:
        raise ArtifactMismatch("\n".join([f"training cannot begin with {directory}:", *problems]), step="train")
    for name, tensor in own.items():
        tensor.copy_(found[name])
