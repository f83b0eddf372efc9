"""Write a draft in the speculators format: a directory that transformers-style tools and vLLM read as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from speculators import __version__
from speculators.checkpoints.layout import layout_of, unrounded
from speculators.verifiers.weight_index import INDEX

SHARD_BYTES = 5_000_000_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class VerifierName:
    """The verifier as a checkpoint names it: a hub id, or an absolute directory; and its architectures."""

    name_or_path: str
    architectures: tuple[str, ...]


def speculators_config(
    draft: Mapping[str, Any], verifier: VerifierName, speculative_tokens: int, dtype: str
) -> dict[str, Any]:
    """The whole `config.json` for a draft's own part of it (`draft`), with every key written out.

    An absent key means different things to different readers, so none is left to them. Keys of `draft` that are not
    known here are kept.
    """
    algorithm, layout = str(draft["speculators_model_type"]), layout_of(draft)
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": speculative_tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        **layout.written(draft),
        "architectures": [layout.ARCHITECTURE],
        "speculators_model_type": algorithm,
        "speculators_version": __version__,
        "speculators_config": {
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [method],
            "verifier": {"name_or_path": verifier.name_or_path, "architectures": list(verifier.architectures)},
        },
        "dtype": dtype,
    }


def write_checkpoint(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `config.json` as it is given, and the tensors, floating ones in the config's `dtype`, but for a few.

    Weights above `shard_bytes` go to several files with an index. `config.json` comes last: a directory that has one
    is whole.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype, kept = DTYPES[config["dtype"]], unrounded(config)
    ready = {
        # A copy of its own for each: safetensors refuses tensors that share memory, as a tied head does.
        name: (tensor.to(dtype) if tensor.is_floating_point() and name not in kept else tensor)
        .detach()
        .cpu()
        .contiguous()
        .clone()
        for name, tensor in tensors.items()
    }
    shards = _shards(ready, shard_bytes)
    total, index = sum(map(_bytes, ready.values())), {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: ready[name] for name in names}, directory / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    _write_json(directory / "config.json", config)


def _shards(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most `limit` bytes; a larger tensor is alone in its group."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + _bytes(tensor) > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += _bytes(tensor)
    return groups


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
