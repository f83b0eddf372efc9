"""Saves of a draft that is divided among processes: each writes its own part, by torch's distributed checkpoints.

The parts fit any number of processes, one included. Their index is a pickle, so such a save is read only where training
left it, in the unfinished artifact; what is published is safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from speculators.training.optimizers import Optimizer
from speculators.training.sharding import divided_like


def write_parts(folder: Path, network: nn.Module, optimizer: Optimizer) -> None:
    """Write this process's part of everything that is trained, and of its moments; all processes call it."""
    save(_parameters(network) | _moments(network, optimizer), checkpoint_id=folder)


def read_parts(folder: Path, network: nn.Module, optimizer: Optimizer) -> None:
    """Take back what `write_parts` left, in whatever division `network` has now."""
    parameters = _parameters(network)
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    moments: dict[str, torch.Tensor] = {}
    for key, described in stored.items():
        if key not in parameters:
            moments[key] = _empty(described, parameters[key.rpartition(".")[0].replace("moments.", "", 1)])
    state: dict[str, Any] = {**parameters, **moments}
    load(state, checkpoint_id=folder)
    by_name = {name: one for name, one in network.named_parameters() if one.requires_grad}
    for key in moments:
        name, _, what = key.removeprefix("moments.").rpartition(".")
        optimizer.state_of(by_name[name])[what] = state[key]


def _parameters(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach() for name, one in network.named_parameters() if one.requires_grad}


def _moments(network: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"moments.{name}.{what}": tensor
        for name, one in network.named_parameters()
        if one.requires_grad
        for what, tensor in optimizer.state_of(one).items()
    }


def _empty(described: Any, parameter: torch.Tensor) -> torch.Tensor:
    """Room for a stored tensor: divided as its parameter is, if it is of the same size."""
    found = torch.zeros(described.size, dtype=described.properties.dtype, device=parameter.device)
    return divided_like(found, parameter) if found.shape == parameter.shape else found.cpu()
