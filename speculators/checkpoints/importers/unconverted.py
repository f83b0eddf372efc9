"""Drafts that are recognised, so that the message can name them, and not converted."""

from __future__ import annotations

from speculators.checkpoints.foreign import Foreign


def known_as(foreign: Foreign) -> str | None:
    """What a checkpoint is, as a noun; None: unknown."""
    names, config = foreign.headers, foreign.config
    if "dflash_config" in config or any("DFlash" in str(name) for name in config.get("architectures") or ()):
        return "a DFlash draft"
    if any(name.startswith("mtp.") or ".mtp_layers." in name or ".eh_proj." in name for name in names):
        return "an MTP head"
    return None
