"""Tokens per second, latency and acceptance of the served model, measured by GuideLLM: once for each variant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.pipeline.step import Context, Estimate, Scope, Step, View
from speculators.steps.speed import verifier_memory

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.recipe.shapes.verifier import Verifier
    from speculators.verifiers.source import Obtained

_SIZES = {"vocab_size": "vocabulary size", "hidden_size": "hidden size", "layers": "number of layers"}


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """One step for each variant of the recipe; none without a benchmark."""
    if recipe.eval.benchmark is None:
        return ()
    return tuple(
        _step(variant.name, own_verifier(recipe, number), drafts=variant.uses_draft)
        for number, variant in enumerate(recipe.eval.benchmark.variants)
    )


def own_verifier(recipe: Recipe, number: int) -> Verifier | None:
    """The verifier that variant `number` has in place of the recipe's; None: it has none."""
    from msgspec.structs import replace

    assert recipe.eval.benchmark is not None  # noqa: S101  it has variants
    variant = recipe.eval.benchmark.variants[number]
    if variant.verifier is None:
        return None
    return replace(recipe.verifier, model=variant.verifier, revision=variant.revision, random=None, sha256=None)


def _step(variant: str, own: Verifier | None, *, drafts: bool) -> Step:
    """`own` is not among what is read: its weights enter the key by their digest, wherever they lie; `drafts` enters it
    by the inputs."""
    reads = ("profile", "requests_per_level", "max_tokens")
    return Step(
        name=f"benchmark-{variant}",
        version=2,
        reads=(
            *(f"eval.benchmark.{name}" for name in reads),
            *("verifier.dtype", "verifier.engine", "verifier.trust_remote_code", "seed"),
        ),
        inputs=("verifier", "prompts", "checkpoint") if drafts else ("verifier", "prompts"),
        run=partial(measure_variant, own=own),
        external=partial(_external, own=own),
        estimate=_estimate,
        machine_bound=True,
    )


def _external(config: View, own: Verifier | None) -> Mapping[str, str]:
    """The digest of the variant's own verifier, and the engine's version."""
    from speculators.verifiers.source import external_digest

    found = {} if own is None else {"verifier": str(external_digest(own))}
    return found | engine_version(config)


def engine_version(config: View) -> dict[str, str]:
    """Another vLLM has another speed."""
    from speculators.errors import MachineError
    from speculators.recipe.shapes.verifier import VllmEngine

    if not isinstance(config.verifier.engine, VllmEngine):
        return {}
    from speculators.engines.vllm.environment import find_vllm

    try:
        return {"vllm": find_vllm().vllm}
    except MachineError:
        return {"vllm": "not installed"}  # the step itself says so


def _estimate(scope: Scope) -> Estimate:
    return Estimate(disk=2 << 20, memory=verifier_memory(scope), seconds=None)


def measure_variant(context: Context, own: Verifier | None = None) -> None:
    """Serve the variant, measure every point, write `benchmark.json` beside GuideLLM's own files."""
    from speculators.evaluation.served_points import held_out_load, measure_served, slots
    from speculators.evaluation.served_variant import Variant
    from speculators.verifiers.source import read_verifier

    asked, verifier = context.config.eval.benchmark, read_verifier(context.inputs["verifier"])
    load = held_out_load(context.inputs["prompts"], asked, context.config.seed)
    replaced = None if own is None else obtain_own(own, verifier.directory, context)
    served = Variant(
        verifier=verifier.directory if replaced is None else replaced.directory,
        checkpoint=context.inputs.get("checkpoint"),
        dtype=context.config.verifier.dtype,
        slots=slots(asked.profile, load.requests),
        trust_remote_code=context.trust_remote_code,
        engine_arguments=context.engine_arguments,
    )

    def tell(point: int, count: int, found: Mapping[str, Any]) -> None:
        told = {name: found[name] for name in ("streams", "rate", "output_tokens_per_second")}
        context.report.metric(point, {name: value for name, value in told.items() if value is not None})
        context.report.progress(point, count, "points")

    levels = measure_served(
        served, context.config.verifier.engine, asked.profile, load, verifier.directory, context.output, tell
    )
    result = {
        "verifier": None if replaced is None else {"source": replaced.source, "digest": replaced.digest},
        "draft": served.checkpoint is not None,
        "max_tokens": load.max_tokens,
        "requests_per_level": load.requests,
        **levels[0],
        "levels": levels,
    }
    (context.output / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def obtain_own(own: Verifier, recipes: Path, context: Context) -> Obtained:
    """The variant's own verifier, fetched if need be; raises StepError unless it has the sizes of the recipe's."""
    from speculators.errors import StepError
    from speculators.verifiers.facts import VerifierFacts
    from speculators.verifiers.source import obtain, read_verifier

    artifact = context.output / "verifier"
    artifact.mkdir(exist_ok=True)
    obtain(own, artifact, tell=context.report.message)
    found = read_verifier(artifact)
    has, wanted = (VerifierFacts.from_directory(directory) for directory in (found.directory, recipes))
    for name, words in _SIZES.items():
        if getattr(has, name) != getattr(wanted, name):
            raise StepError(
                f"{found.source} has another {words} than the recipe's verifier, {getattr(has, name)} instead of "
                f"{getattr(wanted, name)}; a variant is the same verifier in other weights"
            )
    return found
