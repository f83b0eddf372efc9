"""NVIDIA ModelOpt's export: `eagle_config`, `d2t` without `t2d`, the rotary settings of the verifier written in."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.native import LAYER, eagle_config, has_layer, translate_native
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "modelopt"
TITLE = "EAGLE-3 (NVIDIA ModelOpt)"

KEYS = ("use_input_layernorm_in_first_layer", "use_last_layernorm", "use_mtp_layernorm")
"""Keys of `eagle_config` that no other trainer writes."""


def recognise(foreign: Foreign) -> Sequence[str]:
    """Its own keys, its own name for the layer, or one map without the other."""
    named = [prefix for prefix in ("layers.0.", LAYER) if has_layer(foreign, prefix)]
    if not named or "t2d" in foreign.headers:
        return ()
    reasons = []
    if any(key in eagle_config(foreign) for key in KEYS):
        reasons.append("its config has ModelOpt's eagle_config")
    if "d2t" in foreign.headers:
        reasons.append("there is d2t and no t2d")
    if named[0] == "layers.0.":
        reasons.append("its layer is named layers.0")
    return tuple(reasons)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """`t2d` follows from `d2t`; the rotary settings stay as they were exported."""
    if eagle_config(foreign).get("use_mtp_layernorm"):
        raise UsageError(
            f"{foreign.name} norms its states as an MTP head does (use_mtp_layernorm); vLLM has no such draft"
        )
    return translate_native(foreign, facts, aux_layers)
