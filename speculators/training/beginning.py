"""A training that begins with the draft of an earlier checkpoint, or of its own first phase, instead of a fresh one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from speculators.algorithms.base import DraftNetwork
from speculators.checkpoints.load import read_checkpoint
from speculators.errors import ArtifactMismatch
from speculators.training.loop import Before

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


@torch.no_grad()
def take_draft(network: DraftNetwork, earlier: Path) -> None:
    """Put the draft of a finished phase in place of the network's own."""
    network.load_state_dict(load_file(earlier / "model.safetensors"))


def read_before(earlier: Path) -> Before:
    """What a finished phase did, from its result and its metrics."""
    result = json.loads((earlier / "result.json").read_text(encoding="utf-8"))
    seconds = result["seconds"]
    return Before(
        steps=result["steps"],
        tokens=result["tokens"],
        seconds=seconds,
        waited=(result["data_wait"] or 0.0) * seconds,
        metrics=(earlier / "metrics.jsonl").read_bytes(),
    )
