"""The hidden states that a recipe asks for: what they will be, and how the engine that gives them is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from speculators.algorithms import load
from speculators.data.tokens import TokenDataset
from speculators.engines.opened import Opening, scratch_folder
from speculators.engines.transformers import as_dtype
from speculators.errors import ArtifactMismatch, UsageError
from speculators.pipeline.step import Context
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.source import read_verifier
from speculators.verifiers.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class StatesWanted:
    """`record` is the content of `states.json` without shards; states are handed on in `dtype`."""

    record: dict[str, Any]
    opening: Opening
    layers: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Of one token: the layers' streams, the last one, and the prediction."""
        return (len(self.layers) + 1) * int(self.record["hidden_size"]) * self.dtype.itemsize + 4


def check_images(algorithm: str, tokens: TokenDataset) -> None:
    """Raise UsageError when there are images among the tokens, and the algorithm learns from text alone."""
    why: str | None = getattr(load(algorithm, "config"), "TEXT_ONLY", None)
    if tokens.images and why is not None:
        raise UsageError(f"`algorithm.type: {algorithm}` learns from text alone: {why}")


def states_wanted(context: Context, tokens: TokenDataset, algorithm: str) -> StatesWanted:
    """For a draft of `algorithm`, in a step with the input `verifier` that reads all of the paths below.

    These are the algorithm's `states_read`, `data.hidden_states`, `verifier.dtype` and `verifier.engine`. Raises
    ArtifactMismatch when the tokens were made with another tokenizer or chat template than the verifier's, UsageError
    for an algorithm that does not learn from images that are there.
    """
    config = context.config
    source = read_verifier(context.inputs["verifier"])
    facts = VerifierFacts.from_directory(source.directory)
    tokenizer = ChatTokenizer.load(source.directory, trust_remote_code=context.trust_remote_code)
    for what, made_with, own in (
        ("tokenizer", tokens.origin.tokenizer_sha256, tokenizer.tokenizer_sha256),
        ("chat template", tokens.origin.chat_template_sha256, tokenizer.chat_template_sha256),
    ):
        if made_with != own:
            raise ArtifactMismatch(
                f"the tokens were made with the {what} {made_with[:12]}, the verifier has {own[:12]}"
            )
    check_images(algorithm, tokens)
    options = config.data.hidden_states
    layers: tuple[int, ...] = load(algorithm, "config").verifier_layers(config.algorithm, facts.layers)
    dtype = as_dtype(options.dtype)
    assert dtype is not None  # noqa: S101  the schema has no "auto" here
    record = {
        "layer_ids": list(layers),
        "last": "pre_norm",
        "dtype": options.dtype,
        "hidden_size": facts.hidden_size,
        "verifier_digest": source.digest,
        "tokenizer_sha256": tokenizer.tokenizer_sha256,
        "chat_template_sha256": tokenizer.chat_template_sha256,
        "tokens": tokens.tokens,
        "documents": len(tokens),
    }
    opening = Opening(
        engine=config.verifier.engine,
        directory=source.directory,
        dtype=config.verifier.dtype,
        compute_dtype=None if options.compute_dtype == "verifier" else options.compute_dtype,
        scratch=scratch_folder(context),
        trust_remote_code=context.trust_remote_code,
        arguments=context.engine_arguments,
        reads_images=bool(tokens.images),
    )
    return StatesWanted(record, opening, layers, dtype)
