"""Drafts that are recognised, so that the message can name them, and not converted."""

from __future__ import annotations

from speculators.checkpoints.foreign import Foreign


def known_as(foreign: Foreign) -> str | None:
    """What a checkpoint is, as a noun; None: unknown."""
    names = foreign.headers
    if any(name.startswith(("rnn_u.", "rnn_w.")) for name in names):
        return "a ReDrafter draft"
    if any(name.startswith(("forget_emb.", "forget_proj.", "speculator.forget_emb.")) for name in names):
        return "an LSTM speculator"
    return None
