"""MLP speculators from elsewhere: `emb.0`, `proj.0`, `ln.0`, `head.0`, mostly below `speculator.`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from speculators.algorithms.mlp_speculator.config import MLPSpeculatorConfig
from speculators.algorithms.mlp_speculator.layout import tensors
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.assignment import assigned, matrix
from speculators.checkpoints.importers.base import Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "mlp_speculator"
TITLE = "MLP speculator (IBM)"

Shapes = Mapping[str, Sequence[int]]
"""Name -> shape of every tensor of the source."""

_OUR_NAMES = {"emb": "embed_tokens", "proj": "proj", "ln": "norms", "head": "lm_heads"}
_TENSOR = re.compile(r"(?:speculator\.)?(emb|proj|ln|head)\.(\d+)\.(weight|bias)")


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the source's steps share their weights."""
    return bool(config.get("tie_weights", False))


def names(config: Mapping[str, Any], shapes: Shapes) -> dict[str, str]:
    """Our name of each tensor -> the source's; empty when these are not an MLP speculator's.

    With tied weights the source may hold a tensor once for each step; those of later steps are copies (`copies`).
    """
    found = {}
    for name in shapes:
        part = _TENSOR.fullmatch(name)
        if part is None:
            return {}
        if not is_tied(config) or int(part[2]) < (2 if part[1] == "proj" else 1):
            found[f"{_OUR_NAMES[part[1]]}.{part[2]}.{part[3]}"] = name
    return found


def copies(config: Mapping[str, Any], shapes: Shapes) -> dict[str, str]:
    """Tensors of later steps -> the one that each must equal, bit for bit, because the source says they are tied."""
    kept = set(names(config, shapes).values())
    found = {}
    for name in set(shapes) - kept:
        part = _TENSOR.fullmatch(name)
        if part is not None:
            first = 1 if part[1] == "proj" else 0
            found[name] = name.replace(f"{part[1]}.{part[2]}.", f"{part[1]}.{first}.")
    return found


def draft(config: Mapping[str, Any], shapes: Shapes, facts: VerifierFacts, source: str) -> dict[str, Any]:
    """The draft's part of our config.json; raises UsageError, naming `source`, when it does not fit the verifier."""
    ours = names(config, shapes)
    inner, hidden = matrix(shapes, ours.get("proj.0.weight"), "the first step's projection (proj.0.weight)", source)
    words, _ = matrix(shapes, ours.get("lm_heads.0.weight"), "the first step's head (head.0.weight)", source)
    steps = config.get("n_predict")
    if not isinstance(steps, int) or steps < 1:
        raise UsageError(f"{source}: config.json does not say how many tokens are drafted (n_predict)")
    if (hidden, words) != (facts.hidden_size, facts.vocab_size):
        raise UsageError(
            f"{source} is for a verifier of {words} tokens and hidden size {hidden}; this one has "
            f"{facts.vocab_size} and {facts.hidden_size}"
        )
    return MLPSpeculatorConfig(
        hidden_size=hidden,
        inner_size=inner,
        vocab_size=words,
        verifier_layers=facts.layers,
        heads=steps,
        tie_weights=is_tied(config),
        scale_input=bool(config.get("scale_input", False)),
    ).to_config_json()


def recognise(foreign: Foreign) -> Sequence[str]:
    """Its tensors are embeddings, projections, norms and heads of steps, and nothing else."""
    return (
        ("its tensors are embeddings, projections, norms and heads of steps",)
        if names(foreign.config, _shapes(foreign))
        else ()
    )


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Say it in our words; raises UsageError where it does not fit."""
    if aux_layers is not None:
        raise UsageError(f"{foreign.name} reads the verifier's last state alone; there are no layers to choose")
    shapes = _shapes(foreign)
    ours = names(foreign.config, shapes)
    if not ours:
        raise UsageError(f"{foreign.name} holds other tensors than an MLP speculator")
    same = copies(foreign.config, shapes)
    lacking = [first for first in same.values() if first not in foreign.headers]
    if lacking:
        raise UsageError(f"{foreign.name} lacks {lacking[0]}, of which later steps' tensors are copies")
    different = [name for name, first in same.items() if not foreign.read(name).equal(foreign.read(first))]
    if different:
        raise UsageError(
            f"{foreign.name} says that its weights are tied, and {different[0]} is not {same[different[0]]}"
        )
    own = draft(foreign.config, shapes, facts, foreign.name)
    expected, dropped = tensors(own), {name: f"it is {first} once more" for name, first in same.items()}
    return Translation(own, expected, assigned(foreign, expected, ours, dropped, "an MLP speculator"), dropped)


def _shapes(foreign: Foreign) -> Shapes:
    return {name: header.shape for name, header in foreign.headers.items()}
