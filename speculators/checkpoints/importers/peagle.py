"""P-EAGLE as vLLM loads it: EAGLE-3's tensors, and a state and an id for masked tokens."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.native import MASK_STATE, translate_native
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "peagle"
TITLE = "P-EAGLE"

MASK_KEYS = ("ptd_token_id", "pard_token", "mask_token_id")
"""Where configs name the masked token; vLLM knows all three."""


def recognise(foreign: Foreign) -> Sequence[str]:
    """It has the state of a masked token."""
    if MASK_STATE not in foreign.headers:
        return ()
    named = next((f", its config says {key}" for key in MASK_KEYS if key in foreign.config), "")
    return (f"it has a state for tokens that are not known yet (mask_hidden){named}",)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Say it in our words; raises UsageError where it does not fit, or does not name its masked token."""
    said = {key: int(foreign.config[key]) for key in MASK_KEYS if foreign.config.get(key) is not None}
    if not said:
        raise UsageError(f"{foreign.name}: config.json does not say which token is masked ({', '.join(MASK_KEYS)})")
    if len(set(said.values())) > 1:
        different = ", ".join(f"{key} {value}" for key, value in said.items())
        raise UsageError(f"{foreign.name}: config.json names several masked tokens: {different}")
    return translate_native(foreign, facts, aux_layers, mask_token_id=next(iter(said.values())))
