"""SpecForge: EAGLE-3 for SGLang, `midlayer.*` with both maps, saved without the embeddings it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.modelopt import KEYS
from speculators.checkpoints.importers.native import LAYER, eagle_config, has_layer, translate_native
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "specforge"
TITLE = "EAGLE-3 (SpecForge)"


def recognise(foreign: Foreign) -> Sequence[str]:
    """EAGLE-3's names, with what SpecForge writes and leaves out."""
    whole_maps = ("d2t" in foreign.headers) == ("t2d" in foreign.headers)
    if not has_layer(foreign, LAYER) or not whole_maps or any(key in eagle_config(foreign) for key in KEYS):
        return ()
    reasons = ["its layer is named midlayer"]
    if "embed_tokens.weight" not in foreign.headers:
        reasons.append("there are no embeddings")
    if eagle_config(foreign).get("eagle_aux_hidden_state_layer_ids"):
        reasons.append("its eagle_config lists layers")
    if "norm_output" in foreign.config:
        reasons.append("its config says norm_output, which here norms before the head")
    return tuple(reasons) if len(reasons) > 1 else ()


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """SpecForge's `norm_output` is about the head's input; what is fed back is never normed."""
    if foreign.config.get("norm_output", True) is False:
        raise UsageError(
            f"{foreign.name} was trained without a norm before its head (norm_output: false); no engine serves that"
        )
    return translate_native(foreign, facts, aux_layers)
