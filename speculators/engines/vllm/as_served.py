"""A draft as vLLM takes it: the checkpoint as it is, or, of a kind that vLLM reads in another form, that form of it."""

from __future__ import annotations

import json
from pathlib import Path

from speculators.checkpoints.exporters import write_export
from speculators.checkpoints.load import read_checkpoint, read_config
from speculators.checkpoints.rules import vllm_method
from speculators.checkpoints.stitch import stitch
from speculators.engines.vllm.overridden import overridden


def as_served(
    checkpoint: Path, folder: Path, verifier: Path, speculative_tokens: int | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Make `folder` what vLLM needs to serve the directory `verifier` with the draft of `checkpoint`.

    Gives the model to serve and further arguments of the command line. `speculative_tokens` are drafted a pass (None:
    as the checkpoint says). Raises UsageError for a draft that cannot be said in vLLM's form.
    """
    config = read_config(checkpoint)
    method = vllm_method(config)
    if method is None:
        return overridden(checkpoint, folder, verifier, speculative_tokens), ()
    own = config["speculators_config"]["proposal_methods"][0]["speculative_tokens"]
    tokens = speculative_tokens or own
    if method == "mtp":
        stitch(checkpoint, verifier, folder, symbolic=True)
        return folder, drafting(method, tokens)
    write_export(read_checkpoint(checkpoint), method, folder)
    return verifier, drafting(method, tokens, model=str(folder))


def drafting(method: str, tokens: int, **said: str) -> tuple[str, ...]:
    """The arguments with which vLLM drafts so many tokens a pass by one of its methods."""
    return "--speculative-config", json.dumps({"method": method, "num_speculative_tokens": tokens, **said})
