"""What is known of published verifiers before anything of them is fetched: `recipes/verifiers/ORG--NAME.json`.

Each file has the values of the model's config.json that `VerifierFacts` reads, and the bytes of its weights: in all,
and of those that a token meets. Only plans are made from them; a run reads the checkpoint itself.
"""

from __future__ import annotations

import json
from typing import Any

from speculators.shipped import shipped_folder
from speculators.verifiers.facts import VerifierFacts


def published_facts(model: str) -> VerifierFacts | None:
    """The facts of a hub model that a shipped recipe is for; None for any other."""
    known = _known(model)
    if known is None:
        return None
    return VerifierFacts.from_config(
        known["config"],
        weight_bytes=known["weight_bytes"],
        active_weight_bytes=known["active_weight_bytes"],
        where=f"the known config of {model}",
    )


def published_config(model: str) -> dict[str, Any] | None:
    """What is known of the config.json of a hub model that a shipped recipe is for, or drafts with; None: nothing."""
    known = _known(model)
    return None if known is None else dict(known["config"])


def _known(model: str) -> dict[str, Any] | None:
    file = shipped_folder("recipes") / "verifiers" / f"{model.replace('/', '--')}.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
