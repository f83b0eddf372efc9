"""DSpark as DeepSpec saves it: DFlash's layers, two heads, and copies of the verifier's embedding and head."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.block_drafts import has_context, setting, translate_block_draft
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "dspark"
TITLE = "DSpark (DeepSpec)"

_KEYS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")


def recognise(foreign: Foreign) -> Sequence[str]:
    """DFlash's context and a Markov head."""
    if not has_context(foreign) or "markov_head.markov_w1.weight" not in foreign.headers:
        return ()
    return ("its layers share one norm of the verifier's fused streams (hidden_norm)", "it has a Markov head")


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """The anchor's slot predicts too, unless the config denies it: a block proposes as many tokens as it has slots."""
    size, rank = setting(foreign, "block_size"), setting(foreign, "markov_rank")
    if size is None or not rank:
        raise UsageError(f"{foreign.name}: config.json does not say block_size and a markov_rank")
    return translate_block_draft(
        foreign,
        facts,
        aux_layers,
        kind="dspark",
        block_size=int(size),
        own={
            "sample_from_anchor": setting(foreign, "sample_from_anchor") is not False,
            "markov_rank": int(rank),
            "markov_head_type": setting(foreign, "markov_head_type") or "vanilla",
            "enable_confidence_head": bool(setting(foreign, "enable_confidence_head")),
            "confidence_head_with_markov": bool(setting(foreign, "confidence_head_with_markov")),
        },
        known=(*_KEYS, "sample_from_anchor"),
    )
