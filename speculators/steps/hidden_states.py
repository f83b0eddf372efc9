"""The verifier's hidden states over every document: what the draft reads, and what it learns to foresee."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from speculators.algorithms import load
from speculators.errors import UsageError
from speculators.pipeline.digests import value_sha256
from speculators.pipeline.step import Context, Estimate, Scope, Step, View
from speculators.steps.speed import verifier_memory, verifier_seconds

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe

SHARD_BYTES = 1 << 28
_MOST_LAYERS, _SHOWN_LAYERS = 256, 32
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def run(context: Context, algorithm: str) -> None:
    """Write the shards that an earlier attempt did not finish, each machine its share, then `states.json`."""
    from speculators.data.hidden_states import is_whole, plan_shards, write_record
    from speculators.data.tokens import TokenDataset
    from speculators.engines.opened import extracting
    from speculators.engines.states_wanted import states_wanted
    from speculators.engines.stored_states import write_shards
    from speculators.pipeline.shares import shares

    tokens = TokenDataset.open(context.inputs["tokens"])
    wanted = states_wanted(context, tokens, algorithm)
    shards = plan_shards(tokens.lengths.tolist(), wanted.row_bytes, SHARD_BYTES)
    for share in shares(context):
        waiting = share.left(shards, lambda shard: is_whole(context.output / shard.file, shard))
        if not waiting:
            continue
        total = sum(shard.tokens for shard in waiting)
        with extracting(wanted.opening, wanted.layers) as extract:
            for done in write_shards(extract, tokens.reading, waiting, wanted.dtype, context.output):
                context.report.progress(done, total, "tokens")
    if context.nodes.number == 0:
        write_record(context.output, wanted.record, shards)


def estimate(scope: Scope, algorithm: str) -> Estimate:
    """Every token's streams, in the type they are stored in; all of them pass through the verifier once."""
    facts = scope.facts
    tokens, weights, row = facts.get("tokens"), verifier_memory(scope), row_bytes(scope, algorithm)
    memory = None if weights is None else weights + SHARD_BYTES
    if tokens is None or row is None:
        return Estimate(memory=memory)
    return Estimate(disk=int(tokens * row), memory=memory, seconds=reading_seconds(scope))


def row_bytes(scope: Scope, algorithm: str) -> float | None:
    """Bytes of one token's states, as far as the verifier is known."""
    hidden, layers = scope.facts.get("hidden_size"), scope.facts.get("layers")
    if hidden is None or layers is None:
        return None
    streams = 1 + len(load(algorithm, "config").verifier_layers(scope.config.algorithm, int(layers)))
    return streams * hidden * _BYTES[scope.config.data.hidden_states.dtype] + 4


def reading_seconds(scope: Scope) -> float | None:
    """How long the verifier takes to read every document once."""
    return verifier_seconds(scope, scope.facts.get("tokens"), writes=False)


def streams(config: View, algorithm: str) -> dict[str, str]:
    """Which streams are stored, the same for all algorithms that read the same: so they share the states.

    Layers that depend on how many the verifier has are told by what they are for any number of them.
    """
    read = load(algorithm, "config").verifier_layers

    def of(layers: int) -> tuple[int, ...] | None:
        with contextlib.suppress(UsageError):
            return tuple(read(config.algorithm, layers))
        return None

    every = [of(layers) for layers in range(1, _MOST_LAYERS + 1)]
    if len(set(every)) == 1:
        return {"streams": " ".join(map(str, every[0] or ())) or "none but the last"}
    shown = " ".join(map(str, every[_SHOWN_LAYERS - 1] or ()))
    return {"streams": f"{shown} of {_SHOWN_LAYERS} layers ({value_sha256(every)[:8]})"}


def stored(algorithm: str, reads: tuple[str, ...]) -> Step:
    """The step for a draft of this algorithm, whose layers are decided by the recipe paths `reads`."""
    return Step(
        "hidden_states",
        version=2,
        reads=(*reads, "data.hidden_states", "verifier.dtype", "verifier.engine"),
        inputs=("verifier", "tokens"),
        restated=reads,
        external=partial(streams, algorithm=algorithm),
        run=partial(run, algorithm=algorithm),
        estimate=partial(estimate, algorithm=algorithm),
        spans_nodes=True,
        spares_disk="`--set data.hidden_states.mode=online` makes the states while training and stores none",
    )


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """No step when the states are made while training (`training/online.py`)."""
    if recipe.data.hidden_states.mode != "offline":
        return ()
    return (stored(recipe.algorithm.name, recipe.algorithm.states_read),)
