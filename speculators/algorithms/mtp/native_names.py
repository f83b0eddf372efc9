"""Which tensors of a verifier's checkpoint are its multi-token-prediction head, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from speculators.algorithms.mtp.styles import ROUTER_BIAS, STYLES, style_of
from speculators.errors import UsageError


@dataclass(frozen=True)
class NativeHead:
    """The head in a verifier's checkpoint.

    `names` maps each of the head's tensors as ours (without `HEAD`) to the checkpoint's name; `copies` are the names of
    tensors there that repeat the verifier's embedding or head.
    """

    style: str
    names: Mapping[str, str]
    copies: tuple[str, ...]


def find_head(names: Iterable[str], layers: int, model_type: str, where: str) -> NativeHead:
    """The head among the tensor `names` of a verifier of so many layers; `where` names it in messages.

    Raises UsageError when there is none, more than one, or one that is no decoder layer whose parts are known here.
    """
    found = {name: place for name in names if (place := _located(name, layers)) is not None}
    if not found:
        raise UsageError(
            f"{where} has no multi-token-prediction head: none of its tensors is called mtp.*, model.mtp_layers.* or "
            f"model.layers.{layers}.*"
        )
    several = sorted(name for name, (_, number, _rest) in found.items() if number)
    if several:
        raise UsageError(f"{where} has more than one multi-token-prediction head ({several[0]}); only one is trained")
    at, *others = sorted({style for style, _, _rest in found.values()})
    if others:
        raise UsageError(f"{where} has multi-token-prediction heads of several styles: {at}, {', '.join(others)}")
    style = "deepseek" if at == "glm" and style_of(model_type) == "deepseek" else at
    ours = {native: own for own, native in STYLES[style].names.items()}
    mapped = {ours.get(rest, rest): name for name, (_, _number, rest) in found.items()}
    copies = tuple(mapped.pop(name) for name in STYLES[style].copies if name in mapped)
    for own, name in mapped.items():
        if not _KNOWN.fullmatch(own):
            what = (
                "a quantized head cannot be trained"
                if "_scale" in own or own.endswith(("_packed", "qweight", "qzeros"))
                else "only heads with ordinary or latent attention, and an MLP or experts with gates, can be trained"
            )
            raise UsageError(f"{where}: the multi-token-prediction head has {name}; {what}")
    missing = [name for name in _needed(mapped) if name not in mapped]
    if missing:
        name = STYLES[style].names.get(missing[0], missing[0])
        raise UsageError(f"{where}: the multi-token-prediction head is not whole, it has no {name}")
    return NativeHead(style, mapped, copies)


_COMMON = (
    "token_layernorm.weight",
    "hidden_layernorm.weight",
    "input_proj.weight",
    "final_layernorm.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.o_proj.weight",
)
_PLAIN = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
_LATENT = tuple(f"self_attn.{part}.weight" for part in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj"))
_LATENT_QUERIES = tuple(f"self_attn.{part}.weight" for part in ("q_a_proj", "q_a_layernorm", "q_b_proj"))
_PARTS = ("gate", "up", "down")
_KNOWN = re.compile(
    "|".join(
        (
            *map(re.escape, (*_COMMON, *_PLAIN, *_LATENT, *_LATENT_QUERIES, ROUTER_BIAS)),
            r"self_attn\.(?:[qkvo]_proj|q_a_proj|kv_a_proj_with_mqa)\.bias",
            r"self_attn\.[qk]_norm\.weight",
            r"mlp\.(?:experts\.\d+\.|shared_expert\.)?(?:gate|up|down)_proj\.weight",
            r"mlp\.(?:gate|shared_expert_gate)\.weight",
        )
    )
)


def _needed(names: Iterable[str]) -> Iterable[str]:
    """What a head with tensors of these names must have besides."""
    there = set(names)
    yield from _COMMON
    if not there.isdisjoint(_LATENT):
        yield from _LATENT
        yield from (_PLAIN[:1] if there.isdisjoint(_LATENT_QUERIES) else _LATENT_QUERIES)
    else:
        yield from _PLAIN
    if "mlp.gate.weight" not in there:
        yield from (f"mlp.{part}_proj.weight" for part in _PARTS)
        return
    numbers = {int(name.split(".")[2]) for name in there if name.startswith("mlp.experts.")}
    for expert in range(max(numbers, default=0) + 1):
        yield from (f"mlp.experts.{expert}.{part}_proj.weight" for part in _PARTS)
    if any(name.startswith("mlp.shared_expert.") for name in there):
        yield from (f"mlp.shared_expert.{part}_proj.weight" for part in _PARTS)


_INSIDE = r"(?:model\.)?(?:language_model\.)?(?:model\.)?"
_PLACES = {
    "mimo": re.compile(rf"{_INSIDE}mtp_layers\.(?P<number>\d+)\.(?P<rest>.+)"),
    "qwen": re.compile(r"mtp\.(?:layers\.(?P<number>\d+)\.)?(?P<rest>.+)"),
    "glm": re.compile(rf"{_INSIDE}layers\.(?P<number>\d+)\.(?P<rest>.+)"),
}


def _located(name: str, layers: int) -> tuple[str, int, str] | None:
    """Style, number of the head, and the rest of the name; None for a tensor that belongs to no head."""
    for style, pattern in _PLACES.items():
        if match := pattern.fullmatch(name):
            number = int(match["number"] or 0) - (layers if style == "glm" else 0)
            return (style, number, match["rest"]) if number >= 0 else None
    return None
