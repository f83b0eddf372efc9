"""What is known of published verifiers before anything of them is fetched: `recipes/verifiers/ORG--NAME.json`.

Each file has the values of the model's config.json that `VerifierFacts` reads, and the bytes of its weights: in all,
and of those that a token meets. Only plans are made from them; a run reads the checkpoint itself.
"""

from __future__ import annotations

import json

from speculators.shipped import shipped_folder
from speculators.verifiers.facts import VerifierFacts


def published_facts(model: str) -> VerifierFacts | None:
    """The facts of a hub model that a shipped recipe is for; None for any other."""
    file = shipped_folder("recipes") / "verifiers" / f"{model.replace('/', '--')}.json"
    if not file.is_file():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    return VerifierFacts.from_config(
        known["config"],
        weight_bytes=known["weight_bytes"],
        active_weight_bytes=known["active_weight_bytes"],
        where=str(file),
    )
