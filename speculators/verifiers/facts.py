"""What is known about a verifier before any weight is loaded: its `config.json`, and how many bytes its weights take.

Only JSON and the headers of safetensors files are read, never torch, so that planning stays instant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speculators.errors import UsageError
from speculators.verifiers.families import plain_attention, text_config
from speculators.verifiers.latent import Latent
from speculators.verifiers.mixture import Mixture

# Rotary settings of transformers 4, and older ones still found in published configs; version 5 keeps them in one table.
_OLD_ROPE_KEYS = ("rope_theta", "partial_rotary_factor")
_DRAFT_ROPE = ("default", "linear", "llama3", "yarn")
_IMAGE_ROPE = ("mrope_section", "mrope_interleaved")  # rows and columns of images: a draft has positions in time alone

_QUANTIZATION_KEYS = ("quantization_config", "compression_config")  # the second is compressed-tensors' older name

_MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
_MTP_WITHOUT_KEY = ("qwen3_next",)


@dataclass(frozen=True)
class VerifierFacts:
    """The shape of a verifier, with the names of transformers' configs spelled out.

    `rope` always has transformers 5's form, `{"rope_type": ..., "rope_theta": ..., ...}`. `eos_token_ids` joins what
    config.json and generation_config.json name. `weight_bytes` is 0 when no safetensors file is there;
    `active_weight_bytes` is what of it a token meets, less where a layer's experts share the work. The heads are
    those of an ordinary attention layer of the same width where the model's are of another kind
    (`families.plain_attention`). `experts` is how many of them a layer with experts has, `experts_per_token` how many
    of these a token meets; 0 and 0 where there are none. `mixture` and `latent` say more of them and of latent
    attention, where the config does in words that we know. `mtp_layers` counts the multi-token-prediction heads that
    the config promises.
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
    is_quantized: bool = False
    experts: int = 0
    experts_per_token: int = 0
    active_weight_bytes: int = 0
    mtp_layers: int = 0
    mixture: Mixture | None = None
    latent: Latent | None = None

    @classmethod
    def from_directory(cls, directory: Path) -> VerifierFacts:
        """The facts of a Hugging Face checkpoint directory.

        Raises UsageError when there is no readable config.json or when it lacks a size that every decoder has.
        """
        config = _read_json(directory / "config.json")
        generation_file = directory / "generation_config.json"
        generation = _read_json(generation_file) if generation_file.is_file() else {}
        facts = cls.from_config(
            config, generation=generation, weight_bytes=weight_bytes(directory), where=str(directory / "config.json")
        )
        idle = 1 - facts.experts_per_token / facts.experts if facts.experts else 0.0
        active = facts.weight_bytes - int(idle * weight_bytes(directory, ".experts.")) if idle else facts.weight_bytes
        return replace(facts, active_weight_bytes=active)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        generation: Mapping[str, Any] | None = None,
        weight_bytes: int = 0,
        active_weight_bytes: int = 0,
        where: str = "config.json",
    ) -> VerifierFacts:
        """The facts of a config already read; `where` names it in messages."""
        text = text_config(config)

        def size(*names: str, otherwise: int | None = None) -> int:
            for name in names:
                if isinstance(text.get(name), int):
                    return int(text[name])
            if otherwise is None:
                raise UsageError(f"{where} has no `{names[0]}`: it is not the config of a decoder language model")
            return otherwise

        model_type = str(text["model_type"])
        hidden, heads = size("hidden_size", "n_embd"), size("num_attention_heads", "n_head")
        attention = (heads, size("num_key_value_heads", otherwise=heads), size("head_dim", otherwise=hidden // heads))
        if text.get("kv_lora_rank"):
            attention = plain_attention(hidden, heads)
        eos = [text.get("eos_token_id", config.get("eos_token_id")), (generation or {}).get("eos_token_id")]
        return cls(
            model_type=model_type,
            architectures=tuple(config.get("architectures") or ()),
            layers=size("num_hidden_layers", "n_layer"),
            hidden_size=hidden,
            intermediate_size=size("intermediate_size", "n_inner", otherwise=4 * hidden),
            attention_heads=attention[0],
            key_value_heads=attention[1],
            head_dim=attention[2],
            vocab_size=size("vocab_size"),
            rms_norm_eps=float(text.get("rms_norm_eps") or 1e-6),
            max_position_embeddings=size("max_position_embeddings", "n_positions", "model_max_length", otherwise=2048),
            tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
            bos_token_id=_first_id(text.get("bos_token_id", config.get("bos_token_id"))),
            eos_token_ids=tuple(dict.fromkeys(number for ids in eos for number in _ids(ids))),
            rope=rope_parameters(text),
            weight_bytes=weight_bytes,
            active_weight_bytes=active_weight_bytes,
            is_quantized=any(part.get(key) for part in (config, text) for key in _QUANTIZATION_KEYS),
            experts=size("num_experts", "n_routed_experts", "num_local_experts", otherwise=0),
            experts_per_token=size("num_experts_per_tok", "num_experts_per_token", otherwise=0),
            mixture=Mixture.of_config(text),
            latent=Latent.of_config(text),
            mtp_layers=size(*_MTP_KEYS, otherwise=int(model_type in _MTP_WITHOUT_KEY)),
        )


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config in transformers 5's form, whichever version wrote it.

    Configs with one table per kind of layer (`sliding_attention`, `full_attention`) give the full-attention one. Of
    types that a draft's cached keys could not follow, or that are for other heads than a draft's, the base remains.
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
    for name in _IMAGE_ROPE:
        found.pop(name, None)
    if found["rope_type"] not in _DRAFT_ROPE:
        return {"rope_type": "default", "rope_theta": found["rope_theta"]}
    return found


def weight_bytes(directory: Path, part: str = "") -> int:
    """Bytes of the tensors with `part` in their names, in the directory's safetensors files, read from the headers."""
    total = 0
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in safetensors_header(file).items():
            start, end = tensor["data_offsets"]
            total += end - start if part in name else 0
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
