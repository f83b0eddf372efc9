"""What is known about a verifier before any weight is loaded: its `config.json`, and how many bytes its weights take.

Only JSON and the headers of safetensors files are read, never torch, so that planning stays instant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speculators.errors import UsageError

# Rotary settings of transformers 4, and older ones still found in published configs; version 5 keeps them in one table.
_OLD_ROPE_KEYS = ("rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class VerifierFacts:
    """The shape of a verifier, with the names of transformers' configs spelled out.

    `rope` always has transformers 5's form, `{"rope_type": ..., "rope_theta": ..., ...}`. `eos_token_ids` joins what
    config.json and generation_config.json name. `weight_bytes` is 0 when no safetensors file is there.
    """

    model_type: str
    architectures: tuple[str, ...]
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rope: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0

    @classmethod
    def from_directory(cls, directory: Path) -> VerifierFacts:
        """The facts of a Hugging Face checkpoint directory.

        Raises UsageError when there is no readable config.json or when it lacks a size that every decoder has.
        """
        config = _read_json(directory / "config.json")
        generation_file = directory / "generation_config.json"
        generation = _read_json(generation_file) if generation_file.is_file() else {}
        return cls.from_config(
            config, generation=generation, weight_bytes=weight_bytes(directory), where=str(directory / "config.json")
        )

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        generation: Mapping[str, Any] | None = None,
        weight_bytes: int = 0,
        where: str = "config.json",
    ) -> VerifierFacts:
        """The facts of a config already read; `where` names it in messages."""
        text = config.get("text_config") or config  # models with images keep the decoder one level down

        def size(*names: str, otherwise: int | None = None) -> int:
            for name in names:
                if isinstance(text.get(name), int):
                    return int(text[name])
            if otherwise is None:
                raise UsageError(f"{where} has no `{names[0]}`: it is not the config of a decoder language model")
            return otherwise

        hidden, heads = size("hidden_size", "n_embd"), size("num_attention_heads", "n_head")
        eos = [text.get("eos_token_id", config.get("eos_token_id")), (generation or {}).get("eos_token_id")]
        return cls(
            model_type=str(text.get("model_type", config.get("model_type", "unknown"))),
            architectures=tuple(config.get("architectures") or ()),
            layers=size("num_hidden_layers", "n_layer"),
            hidden_size=hidden,
            intermediate_size=size("intermediate_size", "n_inner", otherwise=4 * hidden),
            attention_heads=heads,
            key_value_heads=size("num_key_value_heads", otherwise=heads),
            head_dim=size("head_dim", otherwise=hidden // heads),
            vocab_size=size("vocab_size"),
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
            max_position_embeddings=size("max_position_embeddings", "n_positions", otherwise=2048),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            bos_token_id=_first_id(text.get("bos_token_id", config.get("bos_token_id"))),
            eos_token_ids=tuple(dict.fromkeys(number for ids in eos for number in _ids(ids))),
            rope=rope_parameters(text),
            weight_bytes=weight_bytes,
        )


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config in transformers 5's form, whichever version wrote it.

    Configs with one table per kind of layer (`sliding_attention`, `full_attention`) give the full-attention one.
    """
    new = config.get("rope_parameters")
    if isinstance(new, Mapping):
        nested = new.get("full_attention")
        found = dict(nested if isinstance(nested, Mapping) else new)
    else:
        found = dict(config.get("rope_scaling") or {})
        found.update({key: config[key] for key in _OLD_ROPE_KEYS if config.get(key) is not None})
    old_name = found.pop("type", None)
    found.setdefault("rope_type", old_name or "default")
    found.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    found["rope_theta"] = float(found["rope_theta"])
    return found


def weight_bytes(directory: Path) -> int:
    """Bytes of all tensors in the directory's safetensors files, read from their headers."""
    total = 0
    for file in sorted(directory.glob("*.safetensors")):
        for tensor in safetensors_header(file).values():
            start, end = tensor["data_offsets"]
            total += end - start
    return total


def safetensors_header(file: Path) -> dict[str, Any]:
    """Name -> {dtype, shape, data_offsets} of a safetensors file, without its metadata.

    Raises UsageError when the file is cut off or is not a safetensors file.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise UsageError(f"{file} is not a whole safetensors file: its header is longer than the file")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise UsageError(f"{file} is not a safetensors file: its header is not JSON ({error})") from error
    header.pop("__metadata__", None)
    return dict(header)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{file.parent} is not a verifier: there is no {file.name} in it") from error
    except ValueError as error:
        raise UsageError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} should hold a JSON object")
    return content


def _ids(value: object) -> Iterable[int]:
    if isinstance(value, int):
        return (value,)
    return tuple(item for item in value if isinstance(item, int)) if isinstance(value, list) else ()


def _first_id(value: object) -> int | None:
    return next(iter(_ids(value)), None)
