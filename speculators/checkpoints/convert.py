"""A foreign draft made into one of ours: told, translated, checked by its headers, and only then read.

Nothing is written before everything is known to be right. What the source had that our format has no word for is kept
in the config under `converted_from`, so that the draft can be exported again as it came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speculators.algorithms.draft_model.source import check_tokens
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers import Found, find
from speculators.checkpoints.importers.assignment import computed
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.layout import tensor_problems, unrounded
from speculators.errors import UsageError
from speculators.verifiers.lender import Lender, Part

if TYPE_CHECKING:
    import torch

RECORD = "converted_from"
"""Key of our `config.json` that says what a converted draft was; consumers pass it over."""

FLOATS = ("float32", "bfloat16", "float16")
_LENT: Mapping[str, Part] = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}
_MAPS = {"d2t": "int64", "t2d": "bool"}


@dataclass(frozen=True)
class Converted:
    """A draft in our format: its own part of `config.json`, its tensors in `dtype`, and how it came about."""

    draft: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    dtype: str
    found: Found

    @property
    def summary(self) -> list[str]:
        """What was done, for the user: what it is and why, what was attached, made and dropped, and every notice."""
        translation, one = self.found.translation, self.found.candidate
        lines = [f"{one.importer.TITLE}: {', '.join(one.reasons)}"]
        lines += [f"{name} is the verifier's" for name in translation.attached]
        lines += [f"{name} follows from d2t" for name in translation.made]
        lines += [f"{name} is dropped: {reason}" for name, reason in translation.dropped.items()]
        lines += [f"{name} is dropped: it is the verifier's own {part}" for name, part in translation.borrowed.items()]
        return [*lines, *translation.notices]


def convert(
    foreign: Foreign,
    verifier: Lender,
    *,
    format: str = "auto",  # noqa: A002  the option's name
    aux_layers: Sequence[int] | None = None,
    dtype: str = "source",
    origin: str = "",
) -> Converted:
    """Convert a draft for a verifier. `dtype` is that of its floating tensors, or `source` for what they have.

    Raises UsageError, with one message, for whatever is wrong with either.
    """
    found = find(foreign, verifier.facts, format, aux_layers)
    check_headers(foreign, found)
    if found.translation.reads_text:
        check_tokens(foreign.directory, verifier.tokenizer_directory())
    _check_borrowed(foreign, found, verifier)
    own = _own_dtype(foreign, found)
    target = own if dtype == "source" else dtype
    tensors = _read(foreign, found, verifier, target)
    problems = tensor_problems(tensors, found.translation.draft)
    if problems:
        raise UsageError("\n".join([f"{foreign.name} cannot be converted:", *(f"  {what}" for what in problems)]))
    record = {
        "format": found.candidate.importer.NAME,
        "source": origin or foreign.name,
        "dtype": own,
        "attached": list(found.translation.attached),
        "maps": sorted(name for name in found.translation.dropped if name in _MAPS),
        "layers_given": aux_layers is not None,
        "layer": "midlayer." if any(name.startswith("midlayer.") for name in foreign.headers) else "layers.0.",
        **_shaped_otherwise(found.translation),
        "layout": layout_digest(_kept(foreign, found.translation)),
        "config": dict(foreign.config),
    }
    draft = dict(found.translation.draft)
    if record["format"] != "speculators":
        draft[RECORD] = record
    return Converted(draft, tensors, target, found)


def layout_digest(shapes: Mapping[str, Sequence[int]]) -> str:
    """A digest of tensors' names and shapes: a config says only how those are read that it was written for."""
    lines = "".join(f"{name} {list(shape)}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _kept(foreign: Foreign, translation: Translation) -> dict[str, tuple[int, ...]]:
    """The source's tensors with their shapes, less what nothing reads, and what the verifier may have to put back."""
    left = {*computed(foreign), *translation.borrowed}
    return {name: header.shape for name, header in foreign.headers.items() if name not in left}


def _shaped_otherwise(translation: Translation) -> dict[str, Any]:
    """What exporting needs to know of tensors that are not ours as they are, and of those that are the verifier's."""
    fused: dict[str, list[str]] = {}
    for name in translation.rows:
        fused.setdefault(translation.tensors[name], []).append(name)
    shapes = {name: list(shape) for name, shape in translation.given.items() if name not in fused}
    said = {"fused": fused, "shapes": shapes, "borrowed": dict(translation.borrowed)}
    return {key: value for key, value in said.items() if value}


def check_headers(foreign: Foreign, found: Found) -> None:
    """Shapes and types of all tensors, before one of them is read."""
    expected, given = found.translation.shapes, found.translation.given
    problems = []
    for name, source in found.translation.tensors.items():
        header, wanted = foreign.headers[source], given.get(source, expected[name])
        if header.shape != wanted:
            problems.append(f"{source} has the shape {list(header.shape)}; config and verifier make it {list(wanted)}")
        allowed = (_MAPS[name],) if name in _MAPS else FLOATS
        if header.dtype not in allowed:
            problems.append(f"{source} is {header.dtype}; allowed: {', '.join(allowed)}")
    if problems:
        problems = list(dict.fromkeys(problems))  # several of ours may be one of the source's
        raise UsageError("\n".join([f"{foreign.name} cannot be converted:", *(f"  {what}" for what in problems)]))


def _check_borrowed(foreign: Foreign, found: Found, verifier: Lender) -> None:
    """Tensors that our format leaves to the verifier must be the verifier's."""
    for name, part in found.translation.borrowed.items():
        own, lent = foreign.read(name), verifier.lend(part)
        if own.shape != lent.shape or not bool((own == lent.to(own.dtype)).all()):
            raise UsageError(
                f"{foreign.name}: {name} is not the {part} of {verifier.name}, and a draft of this kind has no other; "
                "it is for another verifier, or was trained with one of its own"
            )


def _own_dtype(foreign: Foreign, found: Found) -> str:
    """The one type of the source's weights."""
    kinds: dict[str, str] = {}
    passed_over = {*_MAPS, *unrounded(found.translation.draft)}
    for name, source in found.translation.tensors.items():
        if name not in passed_over:
            kinds.setdefault(foreign.headers[source].dtype, source)
    if len(kinds) > 1:
        some = ", ".join(f"{source} is {dtype}" for dtype, source in kinds.items())
        raise UsageError(f"{foreign.name} mixes types: {some}; its weights must all be of one type")
    return next(iter(kinds))


def _read(foreign: Foreign, found: Found, verifier: Lender, dtype: str) -> dict[str, torch.Tensor]:
    """All tensors of the draft, in the order of our format, each finite in its new type."""
    import torch

    translation, kind = found.translation, getattr(torch, dtype)
    kept = unrounded(translation.draft)
    tensors: dict[str, torch.Tensor] = {}
    for name in translation.shapes:
        if name in translation.tensors:
            value, where = foreign.read(translation.tensors[name]), f"{foreign.name}: {translation.tensors[name]}"
            first, last = translation.rows.get(name, (0, len(value)))
            value = value[first:last].reshape(translation.shapes[name])
        elif name in translation.attached:
            value, where = verifier.lend(_LENT[name]), f"{verifier.name}: the {_LENT[name]}"
        else:
            continue
        if value.is_floating_point():
            if not bool(torch.isfinite(value).all()):
                raise UsageError(f"{where} holds values that are no numbers (NaN or infinite)")
            value = value if name in kept else value.to(kind)
            if not bool(torch.isfinite(value).all()):
                raise UsageError(f"{where} holds values too large for {dtype}; choose another --dtype")
        tensors[name] = value
    if "t2d" in translation.made:
        tensors["t2d"] = _membership(
            tensors["d2t"], translation.draft["transformer_layer_config"]["vocab_size"], foreign
        )
    return tensors


def _membership(d2t: torch.Tensor, size: int, foreign: Foreign) -> torch.Tensor:
    """Which verifier ids the draft may propose, bool [size], from the offsets of its own."""
    import torch

    targets = torch.arange(len(d2t)) + d2t
    if bool(((targets < 0) | (targets >= size)).any()):
        raise UsageError(
            f"{foreign.name}: d2t leads outside of the verifier's {size} tokens; it must hold offsets, "
            "target id = draft id + d2t[draft id]"
        )
    members = torch.zeros(size, dtype=torch.bool)
    members[targets] = True
    return members
