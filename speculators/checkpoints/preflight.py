"""Would vLLM serve the draft that a recipe is going to train? Asked before anything runs, of the config alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from speculators.algorithms import load
from speculators.algorithms.contracts import DraftConfig
from speculators.checkpoints.rules import draft_problems, had_types, parallel_problems, unhad_form
from speculators.errors import UsageError
from speculators.recipe.finding import Finding
from speculators.recipe.shapes.recipe import Recipe
from speculators.recipe.shapes.verifier import VllmEngine
from speculators.verifiers.facts import VerifierFacts


def unserved(recipe: Recipe, facts: VerifierFacts) -> Iterator[Finding]:
    """Every rule of vLLM's loader that the draft, or the split over GPUs that the recipe asks for, would break.

    And why the verifier cannot have such a draft at all, where that is so.
    """
    try:
        config = draft_config(recipe, facts)
    except UsageError as error:
        yield Finding(("algorithm", "type"), str(error))
        return
    if (form := unhad_form(config)) is not None:
        yield from _not_served(recipe, form)
        return
    for problem in draft_problems(config):
        yield Finding(("algorithm",), f"vLLM would not serve this draft as it was trained: {problem}")
    engine = recipe.verifier.engine
    if isinstance(engine, VllmEngine):
        for problem in parallel_problems(config["transformer_layer_config"], engine.tensor_parallel):
            where = ("verifier", "engine", "tensor_parallel")
            yield Finding(where, f"`verifier.engine.tensor_parallel` is {engine.tensor_parallel}, but {problem}")


def draft_config(recipe: Recipe, facts: VerifierFacts) -> dict[str, Any]:
    """The draft's part of the `config.json` that the recipe's checkpoint will have."""
    options, module = recipe.algorithm, load(recipe.algorithm.name, "config")
    shape: DraftConfig = module.Config.for_verifier(
        facts,
        options,
        draft_vocab_size=getattr(options, "draft_vocab_size", None) or facts.vocab_size,
        aux_layers=module.verifier_layers(options, facts.layers),
    )
    return shape.to_config_json()


def _not_served(recipe: Recipe, form: str) -> Iterator[Finding]:
    """A draft that vLLM does not know can be trained and judged here, but not be served by vLLM for a benchmark."""
    benchmark = recipe.eval.benchmark
    if not isinstance(recipe.verifier.engine, VllmEngine) or benchmark is None:
        return
    for number, variant in enumerate(benchmark.variants):
        if variant.uses_draft:
            where = ("eval", "benchmark", "variants", number)
            hint = f"leave the variant out, or measure it with the embedded engine; vLLM has {', '.join(had_types())}"
            yield Finding(where, f"vLLM does not serve {form}, which the variant `{variant.name}` asks for", hint)
