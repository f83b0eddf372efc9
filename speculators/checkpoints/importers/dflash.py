"""DFlash as its authors (z-lab) release it, and its second version: a bare body, without embeddings and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from speculators.algorithms.dflash2.config import DFlash2Config
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.block_drafts import SECTION, has_context, setting, translate_block_draft
from speculators.verifiers.facts import VerifierFacts

NAME = "dflash"
TITLE = "DFlash (z-lab)"

USUAL_BLOCK = 16
"""Block size where the config says none, in the authors' code."""


def recognise(foreign: Foreign) -> Sequence[str]:
    """The context's one norm, and no heads on top."""
    if not has_context(foreign) or any(name.startswith("markov_head.") for name in foreign.headers):
        return ()
    reasons = ["its layers share one norm of the verifier's fused streams (hidden_norm)"]
    if SECTION in foreign.config:
        reasons.append(f"its config has a {SECTION}")
    if _is_second(foreign):
        reasons.append("it has the second version's convolutions and candidate selector")
    return tuple(reasons)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """The anchor predicts nothing: a block proposes one token less than it has slots."""
    size, second = setting(foreign, "block_size"), _is_second(foreign)
    keys = DFlash2Config.OWN_KEYS if second else ()
    found = translate_block_draft(
        foreign,
        facts,
        aux_layers,
        kind="dflash2" if second else "dflash",
        block_size=int(size or USUAL_BLOCK),
        own={key: value for key in keys if (value := setting(foreign, key)) is not None},
        known=keys,
    )
    if size is not None:
        return found
    return replace(found, notices=(f"config.json does not say block_size; taken: {USUAL_BLOCK}, as its authors do",))


def _is_second(foreign: Foreign) -> bool:
    return any(name.startswith("candidate_selector.") for name in foreign.headers)
