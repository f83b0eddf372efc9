"""Are the tensors of a checkpoint those that its `config.json` describes? Each algorithm says which these are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

from speculators.algorithms import load, names
from speculators.algorithms.contracts import Layout
from speculators.errors import UsageError

if TYPE_CHECKING:
    import torch


def layout_of(config: Mapping[str, Any]) -> Layout:
    """How drafts of a config.json's type stand on disk; raises UsageError for a type that does not exist."""
    kind = config.get("speculators_model_type")
    if kind not in names():
        raise UsageError(f"the checkpoint is of the type {kind!r}; {', '.join(names())} are what can be loaded")
    return cast(Layout, load(str(kind), "layout"))


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with every key that older checkpoints of its kind lack; nothing is changed."""
    return layout_of(config).completed(config)


def unrounded(config: Mapping[str, Any]) -> Collection[str]:
    """Names of tensors that keep their own type, whatever that of the checkpoint is."""
    found: Collection[str] = getattr(layout_of(config), "UNROUNDED", ())
    return found


def tensor_problems(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the tensors of a checkpoint with this `completed` config: names, shapes, vocabulary maps."""
    expected, kind = layout_of(config).tensors(config), config["speculators_model_type"]
    problems = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in tensors]
    problems += [
        f"{name} is not a tensor of {_article(kind)} {kind} checkpoint" for name in tensors if name not in expected
    ]
    problems += [
        f"{name} has the shape {list(tensors[name].shape)}, but config.json makes it {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    return problems or vocabulary_problems(tensors)


def vocabulary_problems(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """What is wrong with the maps between the two vocabularies, if both are there."""
    import torch

    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    if d2t is None or t2d is None:
        return []
    if d2t.dtype != torch.int64 or t2d.dtype != torch.bool:
        return [f"d2t must be int64 and t2d bool; they are {_type(d2t)} and {_type(t2d)}"]
    targets = torch.arange(len(d2t)) + d2t
    if bool(((targets < 0) | (targets >= len(t2d))).any()) or not bool(t2d[targets].all()):
        return ["d2t and t2d disagree: d2t must hold offsets, target id = draft id + d2t[draft id]"]
    different, marked = len(set(targets.tolist())), int(t2d.sum())
    if not different == marked == len(targets):
        return [f"d2t maps {len(targets)} draft ids to {different} different tokens, and t2d marks {marked}"]
    return []


def _article(word: str) -> str:
    return "an" if word[:1] in "aeiou" else "a"


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
