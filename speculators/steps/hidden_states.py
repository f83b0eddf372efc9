"""The verifier's hidden states over every document: what the draft reads, and what it learns to foresee."""

from __future__ import annotations

from typing import Any

from speculators.pipeline.step import Context, Estimate, Scope, Step

SHARD_BYTES = 1 << 28
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WEIGHT_BYTES_PER_SECOND = 6e11
"""Bytes of weights times tokens a second, on two cores of a recent processor; earlier runs know better."""


def run(context: Context) -> None:
    """Write the shards that an earlier attempt did not finish, then `states.json`."""
    from speculators.data.hidden_states import is_whole, plan_shards, write_record
    from speculators.data.tokens import TokenDataset
    from speculators.engines.extraction import resolve_layers
    from speculators.errors import ArtifactMismatch
    from speculators.verifiers.facts import VerifierFacts
    from speculators.verifiers.source import read_verifier
    from speculators.verifiers.tokenizer import ChatTokenizer

    verifier = read_verifier(context.inputs["verifier"])
    facts = VerifierFacts.from_directory(verifier.directory)
    tokens = TokenDataset.open(context.inputs["tokens"])
    tokenizer = ChatTokenizer.load(verifier.directory, trust_remote_code=context.trust_remote_code)
    for what, made_with, own in (
        ("tokenizer", tokens.origin.tokenizer_sha256, tokenizer.tokenizer_sha256),
        ("chat template", tokens.origin.chat_template_sha256, tokenizer.chat_template_sha256),
    ):
        if made_with != own:
            raise ArtifactMismatch(
                f"the tokens were made with the {what} {made_with[:12]}, the verifier has {own[:12]}",
                step="hidden_states",
            )
    layers = resolve_layers(context.config.algorithm.aux_layers, facts.layers)
    options = context.config.data.hidden_states
    lengths = [int(length) for length in tokens.lengths]
    shards = plan_shards(lengths, (len(layers) + 1) * facts.hidden_size * _BYTES[options.dtype] + 4, SHARD_BYTES)
    waiting = [shard for shard in shards if not is_whole(context.output / shard.file, shard)]
    if waiting:
        _extract(context, verifier.directory, layers, tokens, waiting)
    record = {
        "layer_ids": list(layers),
        "last": "pre_norm",
        "dtype": options.dtype,
        "hidden_size": facts.hidden_size,
        "verifier_digest": verifier.digest,
        "tokenizer_sha256": tokenizer.tokenizer_sha256,
        "chat_template_sha256": tokenizer.chat_template_sha256,
        "tokens": tokens.tokens,
        "documents": len(tokens),
    }
    write_record(context.output, record, shards)


def estimate(scope: Scope) -> Estimate:
    """Every token's streams, in the type they are stored in; all of them pass through the verifier once."""
    facts, options = scope.facts, scope.config.data.hidden_states
    tokens, hidden, weights = facts.get("tokens"), facts.get("hidden_size"), facts.get("weight_bytes")
    memory = None if weights is None else int(1.5 * weights + SHARD_BYTES)
    if tokens is None or hidden is None:
        return Estimate(memory=memory)
    streams = 1 + (3 if scope.config.algorithm.aux_layers == "auto" else len(scope.config.algorithm.aux_layers))
    seconds = None if weights is None else tokens * weights / _WEIGHT_BYTES_PER_SECOND
    return Estimate(disk=int(tokens * (streams * hidden * _BYTES[options.dtype] + 4)), memory=memory, seconds=seconds)


def _extract(context: Context, directory: Any, layers: tuple[int, ...], tokens: Any, waiting: list[Any]) -> None:
    from speculators.data.hidden_states import ShardWriter
    from speculators.engines.opened import Opening, extracting
    from speculators.engines.transformers import as_dtype

    options = context.config.data.hidden_states
    opening = Opening(
        engine=context.config.verifier.engine,
        directory=directory,
        dtype=context.config.verifier.dtype,
        compute_dtype=None if options.compute_dtype == "verifier" else options.compute_dtype,
        scratch=context.output / "engine",
        trust_remote_code=context.trust_remote_code,
    )
    dtype = as_dtype(options.dtype)
    assert dtype is not None  # noqa: S101  the schema has no "auto" here
    total, done = sum(shard.tokens for shard in waiting), 0
    with extracting(opening, layers) as extract:
        for shard in waiting:
            numbers = range(shard.first_document, shard.first_document + shard.documents)
            documents = [tokens.document(number)[0] for number in numbers]
            writer = ShardWriter(shard, [len(document) for document in documents], dtype)
            for states in extract(documents):
                writer.put(states.number, states.aux, states.last, states.argmax)
                done += len(states.argmax)
                context.report.progress(done, total, "tokens")
            writer.publish(context.output)


STEP = Step(
    "hidden_states",
    version=1,
    reads=("algorithm.aux_layers", "data.hidden_states", "verifier.dtype", "verifier.engine"),
    inputs=("verifier", "tokens"),
    run=run,
    estimate=estimate,
)
