"""The few tensors of a verifier that a draft is made from: embedding, head and final norm, read without the rest.

Files are read by memory map, so a verifier far larger than memory costs only what is taken from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from speculators.errors import UsageError

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
NORMS = ("norm.weight", "final_layernorm.weight", "final_layer_norm.weight", "ln_f.weight")

SHIFTED_NORMS = ("gemma", "gemma2", "gemma3", "gemma3_text", "qwen3_next", "qwen3_5", "qwen3_5_text")
"""Model types whose RMSNorm multiplies by 1 + weight."""
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

    @classmethod
    def read(cls, directory: Path) -> VerifierWeights:
        """Read them from a Hugging Face checkpoint directory.

        Raises UsageError when a tensor is not found, or when the final norm is not an RMSNorm.
        """
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        text: Mapping[str, Any] = config.get("text_config") or config
        names = _tensor_files(directory)
        if "rms_norm_eps" not in text:
            raise UsageError(
                f"{directory}: the verifier's final norm is not an RMSNorm; no draft can be trained for it"
            )
        norm = _tensor(directory, names, NORMS, "final norm")
        if str(text.get("model_type", config.get("model_type"))) in SHIFTED_NORMS:
            norm = norm + 1
        embedding = _tensor(directory, names, EMBEDDINGS, "embedding")
        is_tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
        head = embedding if is_tied else _tensor(directory, names, HEADS, "head")
        return cls(
            embedding=embedding,
            head=head,
            norm=norm,
            eps=float(text["rms_norm_eps"]),
            # Cohere multiplies its logits, Granite divides them.
            scale=float(text.get("logit_scale") or 1.0) / float(text.get("logits_scaling") or 1.0),
            softcap=text.get("final_logit_softcapping"),
        )


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file, of all safetensors files."""
    names = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names.update(dict.fromkeys(tensors.keys(), file))
    if not names:
        raise UsageError(f"{directory} holds no safetensors file; convert the verifier's weights first")
    return names


def _tensor(directory: Path, names: Mapping[str, Path], endings: Iterable[str], what: str) -> torch.Tensor:
    """The one tensor outside of the layers with one of these endings, in float32."""
    for ending in endings:
        outer = [name for name in names if name == ending or name.endswith(f".{ending}")]
        found = [name for name in outer if "layers." not in name and not any(part in name for part in _ELSEWHERE)]
        if len(found) == 1:
            with safe_open(names[found[0]], framework="pt") as tensors:
                return torch.as_tensor(tensors.get_tensor(found[0])).float()
        if found:
            raise UsageError(f"{directory}: the verifier's {what} could be any of {', '.join(sorted(found))}")
    raise UsageError(f"{directory}: no tensor of the verifier is its {what} ({' or '.join(endings)})")
