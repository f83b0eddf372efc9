"""EAGLE-3.1 as vLLM loads it: a norm for each of the verifier's streams, and the normed output fed back."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.native import LAYER, has_layer, translate_native
from speculators.verifiers.facts import VerifierFacts

NAME = "eagle3.1"
TITLE = "EAGLE-3.1"


def recognise(foreign: Foreign) -> Sequence[str]:
    """It has what 3.1 adds."""
    if not has_layer(foreign, LAYER) and not has_layer(foreign, "layers.0."):
        return ()
    reasons = []
    if any(name.startswith("fc_norm.") for name in foreign.headers):
        reasons.append("each stream has a norm (fc_norm)")
    if foreign.config.get("norm_output"):
        reasons.append("its config says norm_output, which here feeds the normed output back")
    return tuple(reasons)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """`norm_output` as vLLM reads it."""
    return translate_native(foreign, facts, aux_layers, norm_output=bool(foreign.config.get("norm_output", False)))
