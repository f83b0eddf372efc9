"""What training, or a conversion, left as a checkpoint: the draft, its config, and its verifier's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.source import verifier_directory


def write_trained(
    trained: Path, verifier: Path, directory: Path, *, speculative_tokens: int, dtype: str
) -> dict[str, Any]:
    """Write the draft of the train artifact `trained` for the verifier artifact `verifier`; gives its config."""
    place = verifier_directory(verifier)
    name = VerifierName(served_name(verifier, place), VerifierFacts.from_directory(place).architectures)
    draft = json.loads((trained / "draft.json").read_text(encoding="utf-8"))
    config = speculators_config(draft, name, speculative_tokens, dtype)
    write_checkpoint(directory, config, load_file(trained / "model.safetensors"))
    return config


def write_converted(converted: Path, directory: Path, *, speculative_tokens: int) -> dict[str, Any]:
    """Write the draft of the convert artifact `converted`, in the type it has there; gives its config."""
    record = json.loads((converted / "conversion.json").read_text(encoding="utf-8"))
    name = VerifierName(record["verifier"]["name_or_path"], tuple(record["verifier"]["architectures"]))
    draft = json.loads((converted / "draft.json").read_text(encoding="utf-8"))
    config = speculators_config(draft, name, speculative_tokens, record["dtype"])
    write_checkpoint(directory, config, load_file(converted / "model.safetensors"))
    return config


def served_name(artifact: Path, directory: Path) -> str:
    """How a checkpoint names its verifier: a hub model by its id, so that it can be shared, any other by its place."""
    record = json.loads((artifact / "verifier.json").read_text(encoding="utf-8"))
    return str(record["location"].get("hub") or directory.resolve())
