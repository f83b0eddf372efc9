"""The few tensors of a verifier that a draft is made from: embedding, head and final norm, read without the rest.

Files are read by memory map, so a verifier far larger than memory costs only what is taken from it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from speculators.errors import UsageError
from speculators.verifiers.families import SHIFTED_NORMS, text_config
from speculators.verifiers.packed import PARTS, unpacked
from speculators.verifiers.quantized import Scales, dequantized

EMBEDDINGS = ("embed_tokens.weight", "embeddings.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
NORMS = ("norm.weight", "final_layernorm.weight", "final_layer_norm.weight", "ln_f.weight", "norm_f.weight")

_LAYER = re.compile(r"(.*?)layers\.\d+\.")
_ELSEWHERE = ("vision", "audio", "visual", "mtp", "image", "encoder")


@dataclass(frozen=True)
class VerifierWeights:
    """Float32 copies of what training needs, and how the verifier bends its logits.

    `embedding` [V, h]; `head` [V, h], the same tensor when they are tied; `norm` [h] is the factor that the final
    RMSNorm applies (1 + w where the model adds one); logits are `softcap * tanh(scale * z / softcap)`, or `scale * z`
    without a softcap.
    """

    embedding: torch.Tensor
    head: torch.Tensor
    norm: torch.Tensor
    eps: float
    scale: float = 1.0
    softcap: float | None = None
    directory: Path | None = None
    """Where they were read, for drafts that begin with more of the verifier."""

    @classmethod
    def read(cls, directory: Path) -> VerifierWeights:
        """Read them from a Hugging Face checkpoint directory.

        Raises UsageError when a tensor is not found or cannot be dequantised, or when the final norm is not an RMSNorm.
        """
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        text = text_config(config)
        tensors = _Tensors(directory, text.get("quantization_config") or config.get("quantization_config") or {})
        if text.get("rms_norm_eps") is None:
            raise UsageError(
                f"{directory}: the verifier's final norm is not an RMSNorm; no draft can be trained for it"
            )
        norm = tensors.read(NORMS, "final norm")
        if text["model_type"] in SHIFTED_NORMS:
            norm = norm + 1
        embedding = tensors.read(EMBEDDINGS, "embedding")
        is_tied = text.get("tie_word_embeddings")
        if is_tied is None:  # not said: there is no head where they are
            is_tied = not tensors.has(HEADS)
        head = embedding if is_tied else tensors.read(HEADS, "head")
        return cls(
            embedding=embedding,
            head=head,
            norm=norm,
            eps=float(text["rms_norm_eps"]),
            # Cohere multiplies its logits, Granite divides them.
            scale=float(text.get("logit_scale") or 1.0) / float(text.get("logits_scaling") or 1.0),
            softcap=text.get("final_logit_softcapping"),
            directory=directory,
        )


def read_tensors(directory: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint directory by their names, in the types they have; KeyError for one that is not there."""
    files = tensor_files(directory)
    return {name: read_tensor(files[name], name) for name in names}


def tensor_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file, of all safetensors files."""
    names = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names.update(dict.fromkeys(tensors.keys(), file))
    if not names:
        raise UsageError(f"{directory} holds no safetensors file; convert the verifier's weights first")
    return names


class _Tensors:
    """The tensors of all safetensors files of a directory, and how its config says that they were quantised."""

    def __init__(self, directory: Path, quantization: Mapping[str, Any]) -> None:
        self._directory, self._quantization = directory, quantization
        self._files = tensor_files(directory)

    def has(self, endings: Iterable[str]) -> bool:
        """Whether there is any tensor outside of the layers with one of these endings."""
        return any(_named(self._files, ending) or _packed(self._files, ending) for ending in endings)

    def read(self, endings: Iterable[str], what: str) -> torch.Tensor:
        """The one with one of these endings, in float32; `what` it is, is for messages."""
        endings = tuple(endings)
        packed = [name for ending in endings for name in _packed(self._files, ending)]
        if len(packed) == 1 and not any(_named(self._files, ending) for ending in endings):
            return self._unpacked(packed[0])
        name = tensor_name(self._files, endings, f"{self._directory}: ", what)
        return dequantized(read_tensor(self._files[name], name), self._scales(name), f"{self._directory}: {name}")

    def _unpacked(self, name: str) -> torch.Tensor:
        layer, _, kind = name.rpartition(".")
        beside = {part: f"{layer}.{part}" for part in PARTS[kind]}
        parts = {part: read_tensor(self._files[one], one) for part, one in beside.items() if one in self._files}
        return unpacked(parts, self._quantization, f"{self._directory}: {name}")

    def _scales(self, name: str) -> Scales:
        """What stands beside a tensor to dequantise it with."""
        beside = {part: name + part for part in ("_scale_inv", "_scale", "_zero_point")}
        return {part: read_tensor(self._files[one], one) for part, one in beside.items() if one in self._files}


def tensor_name(names: Iterable[str], endings: Iterable[str], where: str, what: str) -> str:
    """The one tensor outside of the layers with one of these endings; of several, that beside the decoder's layers.

    `where` and `what` are for messages. Raises UsageError when there is none, when it is packed (which only `_Tensors`
    reads), and when it could be any of several.
    """
    every, endings = list(names), tuple(endings)
    layers = Counter(match[1] for match in map(_LAYER.match, every) if match and not _is_elsewhere(match[1]))
    decoder = layers.most_common(1)[0][0] if layers else ""
    for ending in endings:
        found = _named(every, ending)
        if len(found) > 1 and decoder + ending in found:
            return decoder + ending
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"{where}the verifier's {what} could be any of {', '.join(sorted(found))}")
        if packed := _packed(every, ending):
            raise UsageError(
                f"{where}the verifier's {what} is packed ({packed[0]}); a draft is made for a verifier that keeps it, "
                "such as the one it was quantised from, and serves with this one"
            )
    raise UsageError(f"{where}no tensor of the verifier is its {what} ({' or '.join(endings)})")


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, as it was saved; nothing else of the file is read."""
    with safe_open(file, framework="pt") as tensors:
        return torch.as_tensor(tensors.get_tensor(name))


def _named(names: Iterable[str], ending: str) -> list[str]:
    outer = (name for name in names if name == ending or name.endswith(f".{ending}"))
    return [name for name in outer if "layers." not in name and not _is_elsewhere(name)]


def _packed(names: Iterable[str], ending: str) -> list[str]:
    """The packed values that stand in the place of a tensor with this ending."""
    every = tuple(names)
    return [name for kind in PARTS for name in _named(every, ending.replace("weight", kind))]


def _is_elsewhere(name: str) -> bool:
    return any(part in name for part in _ELSEWHERE)
