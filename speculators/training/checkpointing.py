"""Saving the whole state of training so that it goes on, after anything, exactly as if nothing had happened.

A save is a directory that appears by one rename: trained parameters and moments, in their own float32, and the
position. Batches, learning rates and noise are functions of recipe, seed and position, so nothing else has a state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from speculators.algorithms.base import Measured
from speculators.training.optimizers import Optimizer

_PREFIX = "step-"


@dataclass
class Progress:
    """Where training is, and what it has found so far."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    seconds: float = 0.0
    """Time in optimizer steps, over all attempts."""
    validated: int = 0
    """The step of the last validation."""
    best: dict[str, float] = field(default_factory=dict)
    """Figures of the best validation, with `at`, its step; empty before the first."""
    last: dict[str, float] = field(default_factory=dict)
    """Figures of the newest validation."""
    window: Measured = field(default_factory=dict)
    """Sums and counts since the last line of metrics."""
    metrics_bytes: int = 0
    """Length of the metrics file; what a killed attempt wrote after its last save is cut off."""


def save(folder: Path, network: nn.Module, optimizer: Optimizer, progress: Progress, *, keep: int) -> Path:
    """Write `folder`/step-NNNNNN and remove all but the newest `keep`; a crash at any moment leaves a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{_PREFIX}{progress.step:06d}"
    partial = folder / f".{place.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(trained_parameters(network), partial / "parameters.safetensors")
    torch.save(optimizer.state(), partial / "optimizer.pt")
    (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for file in partial.iterdir():
        _to_disk(file)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    _to_disk(folder)
    for old in saves(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def restore(folder: Path, network: nn.Module, optimizer: Optimizer) -> Progress:
    """Take back the newest save in `folder`, or the beginning when there is none."""
    found = saves(folder)
    if not found:
        return Progress()
    load_trained(network, load_file(found[-1] / "parameters.safetensors"))
    optimizer.load(torch.load(found[-1] / "optimizer.pt", weights_only=True))
    record: dict[str, Any] = json.loads((found[-1] / "progress.json").read_text(encoding="utf-8"))
    record["window"] = {name: (total, count) for name, (total, count) in record["window"].items()}
    return Progress(**record)


def saves(folder: Path) -> list[Path]:
    """Whole saves, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []


def save_best(file: Path, network: nn.Module) -> None:
    """Write all parameters and buffers of the draft, its frozen ones too, replacing `file` at once."""
    partial = file.with_name(f".{file.name}.partial")
    save_file({name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}, partial)
    _to_disk(partial)
    partial.replace(file)


def trained_parameters(network: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes, by name."""
    return {
        name: parameter.detach().contiguous()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def load_trained(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put saved parameters in place; raises KeyError when they are not those of this network."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name])


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
