"""Read a draft in the speculators format, strictly: every tensor by name and shape, every absent key by its meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.checkpoints.layout import completed, tensor_problems
from speculators.errors import UsageError


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it lies on disk: `config` word for word, `tensors` in the types they were saved in."""

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def speculative_tokens(self) -> int:
        """How many tokens a round proposes, unless the caller says otherwise."""
        return int(self.config["speculators_config"]["proposal_methods"][0]["speculative_tokens"])

    @property
    def verifier(self) -> str:
        """The hub id or directory of the verifier the draft was trained for."""
        return str(self.config["speculators_config"]["verifier"]["name_or_path"])

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Ids of the verifier's layers that the draft reads."""
        return eagle3_config(self.config).aux_layers


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint, word for word; raises UsageError when it is not one of ours."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{directory} is not a checkpoint: there is no config.json in it") from error
    except ValueError as error:
        raise UsageError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or "speculators_model_type" not in config:
        raise UsageError(f"{file} has no `speculators_model_type`: it is not a checkpoint in the speculators format")
    return config


def read_checkpoint(directory: Path) -> Checkpoint:
    """Config and tensors of a checkpoint directory, one file or sharded; nothing is judged yet.

    Raises UsageError when a file is missing or broken.
    """
    config = read_config(directory)
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        tensors.update(_read_tensors(directory / name))
    return Checkpoint(directory, config, tensors)


def eagle3_config(config: Mapping[str, Any], verifier_layers: int | None = None) -> Eagle3Config:
    """The network's shape for a `config.json`, old ones included.

    A config that does not list the layers it reads means [2, n // 2, n - 3] of the verifier's n layers; n is
    `verifier_layers`, or read from the verifier's directory when it is on this machine. Raises UsageError otherwise.
    """
    kind = config.get("speculators_model_type")
    if kind != "eagle3":
        raise UsageError(f"the checkpoint is of the type {kind!r}; eagle3 is what can be loaded")
    whole = completed(config)
    if not whole.get("eagle_aux_hidden_state_layer_ids"):
        layers = verifier_layers or _verifier_layers(whole)
        whole["eagle_aux_hidden_state_layer_ids"] = [2, layers // 2, layers - 3]
    return Eagle3Config.from_config_json(whole)


def load_eagle3(
    checkpoint: Checkpoint | Path, dtype: torch.dtype | None = None, verifier_layers: int | None = None
) -> Eagle3Network:
    """The network of a checkpoint, in `dtype` (None: as saved), ready for inference.

    Raises UsageError naming every tensor that is missing, unknown or of the wrong shape.
    """
    if isinstance(checkpoint, Path):
        checkpoint = read_checkpoint(checkpoint)
    shape = eagle3_config(checkpoint.config, verifier_layers)
    problems = tensor_problems(checkpoint.tensors, completed(checkpoint.config))
    if problems:
        raise UsageError("\n".join([f"{checkpoint.directory} cannot be loaded:", *(f"  {what}" for what in problems)]))
    network = Eagle3Network(shape)
    network.load_state_dict(dict(checkpoint.tensors), strict=True, assign=True)  # assigned: their types are kept
    network.requires_grad_(requires_grad=False)
    return network.to(dtype).eval() if dtype is not None else network.eval()


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(file))
    except FileNotFoundError as error:
        raise UsageError(f"{file.parent} is not whole: {file.name} is missing") from error
    except SafetensorError as error:
        raise UsageError(f"{file} is broken: {error}") from error


def _verifier_layers(config: Mapping[str, Any]) -> int:
    name = (config.get("speculators_config") or {}).get("verifier", {}).get("name_or_path")
    file = Path(str(name)) / "config.json"
    if not file.is_file():
        raise UsageError(
            "config.json does not list the layers that the draft reads (eagle_aux_hidden_state_layer_ids), and the "
            f"verifier {name} is not on this machine to count its layers; add the key"
        )
    found = json.loads(file.read_text(encoding="utf-8"))
    return int((found.get("text_config") or found)["num_hidden_layers"])
