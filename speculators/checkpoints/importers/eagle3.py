"""EAGLE-3 as its authors release it: `midlayer.*`, both vocabulary maps, mostly without embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.native import LAYER, eagle_config, has_layer, translate_native
from speculators.verifiers.facts import VerifierFacts

NAME = "eagle3"
TITLE = "EAGLE-3 (SafeAILab)"


def recognise(foreign: Foreign) -> Sequence[str]:
    """Its layer is `midlayer`, and its config has nothing that other trainers add."""
    added = eagle_config(foreign) or foreign.config.get("fc_norm") or "norm_output" in foreign.config
    if not has_layer(foreign, LAYER) or added or ("d2t" in foreign.headers) != ("t2d" in foreign.headers):
        return ()
    maps = "both vocabulary maps are there" if "d2t" in foreign.headers else "it has no vocabulary map"
    return ("its layer is named midlayer", maps)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Word for word; the state that is fed back is the one before the final norm."""
    return translate_native(foreign, facts, aux_layers)
