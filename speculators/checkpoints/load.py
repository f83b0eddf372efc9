"""Read a draft in the speculators format, strictly: every tensor by name and shape, every absent key by its meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from speculators.algorithms import load
from speculators.algorithms.base import DraftNetwork
from speculators.algorithms.contracts import DraftConfig
from speculators.checkpoints.layout import completed, tensor_problems
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weight_index import INDEX, read_index
from speculators.verifiers.weights import VerifierWeights


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
        return draft_shape(self.config).aux_layers


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
    index = directory / INDEX
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(read_index(index).values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        tensors.update(_read_tensors(directory / name))
    return Checkpoint(directory, config, tensors)


def draft_shape(config: Mapping[str, Any], verifier: Path | None = None) -> DraftConfig:
    """The shape of the draft with this `config.json`; keys that older checkpoints lack mean what vLLM takes them to.

    `verifier` is the directory of its verifier, None for the one that the checkpoint names. Raises UsageError when a
    key is missing that nothing can stand in for, or the type is none that exists.
    """
    whole = completed(config)
    shape = load(str(config["speculators_model_type"]), "config").Config
    found: DraftConfig = shape.from_config_json(whole, partial(_verifier_layers, config, verifier))
    return found


def load_draft(
    checkpoint: Checkpoint | Path, dtype: torch.dtype | None = None, verifier: Path | None = None
) -> DraftNetwork:
    """The network of a checkpoint, in `dtype` (None: as saved), ready for inference.

    `verifier` is the directory of its verifier, None for the one that the checkpoint names; it is read only by drafts
    that share weights with it. Raises UsageError naming every tensor that is missing, unknown or of the wrong shape.
    """
    if isinstance(checkpoint, Path):
        checkpoint = read_checkpoint(checkpoint)
    shape = draft_shape(checkpoint.config, verifier)
    problems = tensor_problems(checkpoint.tensors, completed(checkpoint.config))
    if problems:
        raise UsageError("\n".join([f"{checkpoint.directory} cannot be loaded:", *(f"  {what}" for what in problems)]))
    network: DraftNetwork = load(str(checkpoint.config["speculators_model_type"]), "network").Network(shape)
    network.load_state_dict(dict(checkpoint.tensors), strict=True, assign=True)  # assigned: their types are kept
    if network.shares_weights:
        network.attach(VerifierWeights.read(_verifier_directory(checkpoint.config, verifier)))
    network.requires_grad_(requires_grad=False)
    return network.to(dtype).eval() if dtype is not None else network.eval()


def proposal_of(network: DraftNetwork, compute_dtype: torch.dtype | None = None) -> Any:
    """The network as a draft for the decoding loop (`decoding/models.Proposal`), products taken in `compute_dtype`."""
    return load(str(network.config.to_config_json()["speculators_model_type"]), "proposal").Proposal(
        network, compute_dtype
    )


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(file))
    except FileNotFoundError as error:
        raise UsageError(f"{file.parent} is not whole: {file.name} is missing") from error
    except SafetensorError as error:
        raise UsageError(f"{file} is broken: {error}") from error


def _verifier_layers(config: Mapping[str, Any], verifier: Path | None) -> int:
    return VerifierFacts.from_directory(_verifier_directory(config, verifier)).layers


def _verifier_directory(config: Mapping[str, Any], verifier: Path | None) -> Path:
    if verifier is not None:
        return verifier
    name = str((config.get("speculators_config") or {}).get("verifier", {}).get("name_or_path"))
    if not (Path(name) / "config.json").is_file():
        raise UsageError(f"the draft cannot be read without its verifier, and {name} is not on this machine")
    return Path(name)
