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
from speculators.training.divided_saves import read_parts, write_parts
from speculators.training.optimizers import Optimizer
from speculators.training.ranks import ALONE, Ranks
from speculators.training.sharding import divided_like, whole

_PREFIX = "step-"
_PARTS = "parts"
"""The directory in a save of a draft that was divided among processes (`training/divided_saves.py`)."""


@dataclass
class Progress:
    """Where training is, and what it has found so far."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    seconds: float = 0.0
    """Time in optimizer steps, over all attempts."""
    waited: float = 0.0
    """Seconds of that time in which the next batch was not yet there."""
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


def save(
    folder: Path, network: nn.Module, optimizer: Optimizer, progress: Progress, *, keep: int, ranks: Ranks = ALONE
) -> Path:
    """Write `folder`/step-NNNNNN and remove all but the newest `keep`; a crash at any moment leaves a whole one.

    Every process has to call it when the draft is divided, and the first alone otherwise.
    """
    place = folder / f"{_PREFIX}{progress.step:06d}"
    partial = folder / f".{place.name}.partial"
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    if ranks.is_sharded:
        ranks.any(False)  # the directory is there
        write_parts(partial / _PARTS, network, optimizer)
        ranks.any(False)  # every part is
        if not ranks.is_first:
            return place
    else:
        save_file(trained_parameters(network), partial / "parameters.safetensors")
        torch.save(optimizer.state(), partial / "optimizer.pt")
    (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for file in partial.rglob("*"):
        _to_disk(file)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    _to_disk(folder)
    for old in saves(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def restore(folder: Path, network: nn.Module, optimizer: Optimizer) -> Progress | None:
    """Take back the newest save in `folder`; None when there is none."""
    found = saves(folder)
    if not found:
        return None
    if (found[-1] / _PARTS).is_dir():
        read_parts(found[-1] / _PARTS, network, optimizer)
    else:
        load_trained(network, load_file(found[-1] / "parameters.safetensors"))
        optimizer.load(torch.load(found[-1] / "optimizer.pt", weights_only=True))
    record: dict[str, Any] = json.loads((found[-1] / "progress.json").read_text(encoding="utf-8"))
    record["window"] = {name: (total, count) for name, (total, count) in record["window"].items()}
    return Progress(**record)


def saves(folder: Path) -> list[Path]:
    """Whole saves, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []


def save_best(file: Path, network: nn.Module, *, writes: bool = True) -> None:
    """Write all parameters and buffers of the draft, its frozen ones too, replacing `file` at once.

    Every process has to call it when the draft is divided; only the one that `writes` does.
    """
    tensors = {name: whole(tensor.detach()).contiguous() for name, tensor in network.state_dict().items()}
    if not writes:
        return
    partial = file.with_name(f".{file.name}.partial")
    save_file(tensors, partial)
    _to_disk(partial)
    partial.replace(file)


def write_at_once(file: Path, text: str) -> None:
    """Write `file` so that it is there whole or not at all, and after all that was written before it."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
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
                parameter.copy_(divided_like(tensors[name].to(parameter.device), parameter))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
