"""The trained or converted draft as a checkpoint in the speculators format, checked against the rules of vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speculators.algorithms import load
from speculators.pipeline.step import Context, Estimate, Scope, Step

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "source": 2}
_USUAL_TOKENS = 3  # drafted a pass, where neither the recipe nor a converted draft says


def run(context: Context) -> None:
    """Write config.json, the weights and a model card."""
    from speculators.checkpoints.check import check_checkpoint
    from speculators.checkpoints.trained import write_trained
    from speculators.errors import StepError

    trained = context.inputs["train"]
    config = write_trained(
        trained,
        context.inputs["verifier"],
        context.output,
        speculative_tokens=_speculative_tokens(context),
        dtype=context.config.convert.dtype,
    )
    result = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    (context.output / "README.md").write_text(card(context.config.name, config, result), encoding="utf-8")
    problems = check_checkpoint(context.output)
    if problems:
        raise StepError("\n".join(["the checkpoint would not be served as it was trained:", *problems]))


def run_converted(context: Context) -> None:
    """The same for a draft that was converted."""
    from speculators.checkpoints.check import check_checkpoint
    from speculators.checkpoints.trained import write_converted
    from speculators.errors import StepError

    made = json.loads((context.inputs["convert"] / "conversion.json").read_text(encoding="utf-8"))
    number = _measured(context) or made["speculative_tokens"] or _USUAL_TOKENS
    config = write_converted(context.inputs["convert"], context.output, speculative_tokens=number)
    about = f"Converted by speculators from `{made['source']}`: {made['title']}."
    (context.output / "README.md").write_text(card(context.config.name, config, {}, about), encoding="utf-8")
    problems = check_checkpoint(context.output)
    if problems:
        raise StepError("\n".join(["the checkpoint would not be served as it was meant:", *problems]))


def _speculative_tokens(context: Context) -> int:
    """As many as were found best, or as acceptance is measured with, or else as the draft was trained for."""
    return _measured(context) or int(context.config.algorithm.speculative_tokens)


def _measured(context: Context) -> int | None:
    """As many as were found best, or as acceptance is measured with; None where neither is said."""
    if "speculative_tokens" in context.inputs:
        found = (context.inputs["speculative_tokens"] / "speculative_tokens.json").read_text(encoding="utf-8")
        return int(json.loads(found)["best"])
    acceptance = getattr(context.config.eval, "acceptance", None)
    return int(acceptance.speculative_tokens) if acceptance else None


def card(name: str, config: Mapping[str, Any], training: Mapping[str, Any], description: str | None = None) -> str:
    """The model card, README.md."""
    from speculators.reporting.card import model_card

    return model_card(name=name, description=description, config=config, training=training, recipe="")


def estimate(scope: Scope) -> Estimate:
    """From the verifier's sizes: embeddings, and what is trained."""
    facts, size = scope.facts, _BYTES[scope.config.convert.dtype]
    if "vocab_size" not in facts or "hidden_size" not in facts:
        return Estimate(seconds=5.0)
    algorithm = scope.config.algorithm
    trained = load(algorithm.name, "config").trained_parameters(algorithm, facts)
    draft = facts["vocab_size"] * facts["hidden_size"] + trained
    return Estimate(disk=int(draft * size), memory=int(draft * 8), seconds=5.0)


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """The number of speculative tokens is an input where it is measured first."""
    acceptance = recipe.eval.acceptance
    measured = acceptance is not None and acceptance.speculative_tokens == "auto"
    if recipe.converts:
        return (
            Step(
                "checkpoint",
                version=1,
                reads=("eval.acceptance.speculative_tokens", "name"),
                inputs=("convert", "speculative_tokens") if measured else ("convert",),
                run=run_converted,
            ),
        )
    return (
        Step(
            "checkpoint",
            version=1,
            reads=("convert", "algorithm", "eval.acceptance.speculative_tokens", "name"),
            inputs=("verifier", "train", "speculative_tokens") if measured else ("verifier", "train"),
            run=run,
            estimate=estimate,
            uses_gpu=False,
        ),
    )
