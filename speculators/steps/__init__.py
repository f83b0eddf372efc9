"""One file a step: what it reads, makes and costs. Here they are joined with a recipe into one graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import RecipeError, UsageError
from speculators.pipeline.assembly import Artifacts, Assembly, Gate
from speculators.pipeline.step import Step
from speculators.steps.heaviest_batch import heaviest_batch

if TYPE_CHECKING:
    from speculators.pipeline.hardware import Hardware
    from speculators.recipe.locate import Origins
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.verifiers.facts import VerifierFacts

MODULES = (
    "verifier",
    "prompts",
    "answers",
    "tokens",
    "vocabulary",
    "hidden_states",
    "train",
    "convert",
    "shipped_prompts",
    "speculative_tokens",
    "checkpoint",
    "acceptance",
    "benchmark",
    "report",
)
"""The files of this folder in order; each has a `STEP`, or `steps(recipe)` where the recipe decides."""

_OF_TRAINING = ("prompts", "answers", "tokens", "vocabulary", "hidden_states", "train")
"""Those that a recipe which converts a draft does not have."""

_COUNTED_BYTES = 64 << 20  # planning stays instant: larger files of prompts are not counted


def graph(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of a recipe, in order."""
    found: list[Step] = []
    for name in MODULES:
        if recipe.converts and name in _OF_TRAINING:
            continue
        module = import_module(f"speculators.steps.{name}")
        found.extend(module.steps(recipe) if hasattr(module, "steps") else (module.STEP,))
    return tuple(found)


def assemble(
    recipe: Recipe, data: dict[str, Any], origins: Origins | None = None, hardware: Hardware | None = None
) -> Assembly:
    """What the pipeline needs to know of a recipe.

    `data` is the same recipe as plain data, `origins` says where its values were written. Estimates are for
    `hardware`, or this machine.
    """
    from speculators.pipeline.hardware import hardware_here
    from speculators.recipe.semantic import semantic
    from speculators.recipe.view import view

    steps = graph(recipe)
    return Assembly(
        name=recipe.name,
        data=data,
        steps=steps,
        reassemble="speculators.steps:reassemble",
        semantic=lambda reads: semantic(recipe, reads),
        view=lambda reads: view(recipe, reads),
        facts=lambda artifacts: gathered_facts(recipe, artifacts, hardware or hardware_here()),
        check=lambda artifacts: check_fields(recipe, artifacts, origins),
        gates=lambda folder: judged_gates(recipe, folder),
        results=_write_results,
        figures=tuple(step.name for step in steps if step.name == "speculative_tokens"),
        trusts_remote_code=recipe.verifier.trust_remote_code,
    )


def reassemble(data: dict[str, Any]) -> Assembly:
    """The assembly of the recipe that stands in a plan, for a worker."""
    from speculators.recipe.load import recipe_of

    return assemble(recipe_of(data), data)


def check_fields(recipe: Recipe, artifacts: Artifacts, origins: Origins | None = None) -> bool:
    """Check the recipe against the verifier, if enough is known about it; False: not yet.

    Raises RecipeError with every field that does not fit the verifier, or makes a draft that vLLM would not serve.
    """
    from speculators.checkpoints.preflight import unserved
    from speculators.recipe.crossfield import check, placed

    facts = _verifier_facts(recipe, artifacts)
    if facts is None:
        return False
    problems = check(recipe, facts, origins)
    if not problems and not recipe.converts:
        problems = placed(unserved(recipe, facts), recipe, origins)
    if problems:
        raise RecipeError(problems)
    return True


def gathered_facts(recipe: Recipe, artifacts: Artifacts, hardware: Hardware | None = None) -> Mapping[str, float]:
    """Numbers for the estimates: the verifier's sizes, the GPUs, and how many documents and tokens there are.

    Where there are none yet, as many as the recipe asks for at most, if it says how many.
    """
    found: dict[str, float] = {}
    if not recipe.converts:
        found = _expected(recipe)
        found["state_bytes"] = 4.0 if recipe.data.hidden_states.dtype == "float32" else 2.0
    if hardware is not None:
        found |= {"gpus": hardware.count, "gpu_memory": hardware.memory, "gpu_speed": hardware.speed}
    verifier = _verifier_facts(recipe, artifacts)
    if verifier is not None:
        for name in type(verifier).__dataclass_fields__:
            value = getattr(verifier, name)
            if isinstance(value, int | float):
                found[name] = float(value)
            elif is_dataclass(value):  # sizes of experts and of latent attention
                found |= {f"{name}_{one}": float(size) for one, size in vars(value).items()}
    prompts, tokens = artifacts.get("prompts"), artifacts.get("tokens")
    if prompts is not None and (prompts / "prompts.jsonl").stat().st_size < _COUNTED_BYTES:
        found["prompts"] = float((prompts / "prompts.jsonl").read_bytes().count(b"\n"))
    if tokens is not None:
        described = json.loads((tokens / "tokens.json").read_text(encoding="utf-8"))
        found.update(
            {name: float(described[name]) for name in ("documents", "holdout_documents", "tokens", "loss_tokens")}
        )
        most_chains = recipe.algorithm.chains_per_document
        found.update(heaviest_batch(tokens, recipe.train.tokens_per_step, recipe.seed, most_chains))
    return found


def _expected(recipe: Recipe) -> dict[str, float]:
    """Prompts and tokens that the recipe asks for: all prompts kept, all answers as long as they may be."""
    from speculators.steps.speed import PROMPT_TOKENS

    samples = [source.samples for source in recipe.data.sources]
    known = [count for count in samples if count is not None]
    if len(known) < len(samples):
        return {}
    prompts, regenerate = float(sum(known)), recipe.data.regenerate
    answers = prompts * (1 if regenerate is None else regenerate.samples_per_prompt)
    longest = recipe.data.max_length
    each = longest if regenerate is None else min(longest, PROMPT_TOKENS + regenerate.max_new_tokens)
    return {"prompts": prompts, "documents": answers, "tokens": answers * each}


def judged_gates(recipe: Recipe, folder: Path) -> tuple[Gate, ...]:
    """The recipe's gates, judged on the results as far as they are known in the run's folder."""
    if not recipe.eval.gates:
        return ()
    from speculators.evaluation.gates import judge
    from speculators.reporting.results import collect

    verdicts = judge(recipe.eval.gates, collect(folder))
    return tuple(Gate(verdict.text, verdict.value, verdict.passed) for verdict in verdicts)


def _write_results(folder: Path) -> None:
    from speculators.reporting.results import write_results

    write_results(folder)


def _verifier_facts(recipe: Recipe, artifacts: Artifacts) -> VerifierFacts | None:
    from speculators.verifiers.source import known_facts

    try:
        return known_facts(recipe.verifier, artifacts.get("verifier"))
    except UsageError:
        raise
    except (OSError, ValueError, KeyError):
        return None  # the verifier step itself says what is wrong with it
