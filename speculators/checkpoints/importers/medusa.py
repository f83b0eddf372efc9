"""Medusa drafts from elsewhere: its authors' releases (`0.0.linear.weight`), and what vLLM loads (`blocks.0.layers.0`).

In the authors' files head i is `i.0`, `i.1` ... for its residual blocks and, after the last, its output layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from speculators.algorithms.medusa.config import MedusaConfig
from speculators.algorithms.medusa.layout import tensors
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.assignment import assigned, matrix
from speculators.checkpoints.importers.base import Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "medusa"
TITLE = "Medusa"

SHARED_VOCABULARY = "token_map"
"""A draft of a part of the vocabulary has it, with the verifier's ids; vLLM 0.32 does not load such a one either."""

Shapes = Mapping[str, Sequence[int]]
"""Name -> shape of every tensor of the source."""

_BLOCK = re.compile(r"(?:medusa_heads?\.)?(\d+)\.(\d+)\.linear\.(weight|bias)")
_OUTPUT = re.compile(r"(?:medusa_heads?\.)?(\d+)\.(\d+)\.weight")
_OURS = re.compile(r"blocks\.\d+\.layers\.\d+\.(weight|bias)|lm_heads\.\d+\.weight|lm_head\.weight")


def names(shapes: Shapes) -> dict[str, str]:
    """Our name of each tensor -> the source's; empty when these are not a Medusa draft's."""
    found = {}
    for name in shapes:
        if block := _BLOCK.fullmatch(name):
            found[f"blocks.{block[1]}.layers.{block[2]}.{block[3]}"] = name
        elif output := _OUTPUT.fullmatch(name):
            found[f"lm_heads.{output[1]}.weight"] = name
        elif _OURS.fullmatch(name):
            found[name] = name
    is_whole = set(found.values()) | {SHARED_VOCABULARY} >= set(shapes)
    return found if is_whole and any(name.startswith("blocks.") for name in found) else {}


def draft(shapes: Shapes, facts: VerifierFacts, source: str) -> dict[str, Any]:
    """The draft's part of our config.json, from the names and shapes alone: they say more than older configs do.

    Raises UsageError, naming `source`, when it does not fit the verifier or has no biases.
    """
    ours = names(shapes)
    places = [tuple(map(int, re.findall(r"\d+", name))) for name in ours if name.startswith("blocks.")]
    heads, layers = 1 + max(head for head, _ in places), 1 + max(layer for _, layer in places)
    is_shared = "lm_head.weight" in ours
    head = ours.get("lm_head.weight" if is_shared else "lm_heads.0.weight")
    words, hidden = matrix(shapes, head, "the first head's output layer", source)
    if not any(name.endswith(".bias") for name in ours):
        raise UsageError(f"{source} has blocks without biases, which this project's Medusa drafts have")
    if SHARED_VOCABULARY in shapes:
        raise UsageError(f"{source} has a part of the vocabulary ({SHARED_VOCABULARY}), which is not converted")
    if (hidden, words) != (facts.hidden_size, facts.vocab_size):
        raise UsageError(
            f"{source} is for a verifier of {words} tokens and hidden size {hidden}; this one has "
            f"{facts.vocab_size} and {facts.hidden_size}"
        )
    return MedusaConfig(
        hidden_size=hidden,
        vocab_size=facts.vocab_size,
        draft_vocab_size=words,
        verifier_layers=facts.layers,
        heads=heads,
        layers=layers,
        shared_head=is_shared,
    ).to_config_json()


def recognise(foreign: Foreign) -> Sequence[str]:
    """Its tensors are blocks and output layers of heads, and nothing else."""
    return ("its tensors are residual blocks and output layers of heads",) if names(_shapes(foreign)) else ()


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Say it in our words; raises UsageError where it does not fit."""
    if aux_layers is not None:
        raise UsageError(f"{foreign.name} reads the verifier's last state alone; there are no layers to choose")
    shapes = _shapes(foreign)
    ours = names(shapes)
    if not ours:
        raise UsageError(f"{foreign.name} holds other tensors than a Medusa draft")
    own = draft(shapes, facts, foreign.name)
    expected = tensors(own)
    return Translation(own, expected, assigned(foreign, expected, ours, (), "a Medusa draft"))


def _shapes(foreign: Foreign) -> Shapes:
    return {name: header.shape for name, header in foreign.headers.items()}
