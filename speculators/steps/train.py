"""The draft, trained on the verifier's states until the recipe's epochs are through; the best one is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speculators.pipeline.step import Context, Estimate, Scope, Step

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe

_OPTIMIZER_COPIES = 4  # weights, gradients and two moments, all float32
_SAVED_COPIES = 3  # the best draft, and one save with two moments


def run(context: Context) -> None:
    """Write the best draft, its config, metrics and result; what a killed attempt saved is taken up again."""
    from speculators.training.inputs import Artifacts, open_inputs
    from speculators.training.loop import train

    artifacts = Artifacts(
        verifier=context.inputs["verifier"],
        tokens=context.inputs["tokens"],
        hidden_states=context.inputs["hidden_states"],
        vocabulary=context.inputs["vocabulary"],
    )
    train(
        open_inputs(
            artifacts,
            context.config.algorithm,
            context.config.train,
            seed=context.config.seed,
            output=context.output,
            report=context.report,
        )
    )


def estimate(scope: Scope) -> Estimate:
    """From the verifier's sizes, and the speed of an earlier training here when there was one."""
    facts, algorithm, options = scope.facts, scope.config.algorithm, scope.config.train
    disk = memory = None
    if "hidden_size" in facts and "vocab_size" in facts:
        hidden, vocabulary = facts["hidden_size"], facts["vocab_size"]
        layer = (11 * hidden + 3 * facts.get("intermediate_size", 4 * hidden)) * hidden * algorithm.layers
        trained = layer + (algorithm.draft_vocab_size or vocabulary) * hidden
        disk = int(4 * (vocabulary * hidden + _SAVED_COPIES * trained))
        memory = int(
            4 * (3 * vocabulary * hidden + _OPTIMIZER_COPIES * trained) + options.tokens_per_step * hidden * 400
        )
    tokens, speed = facts.get("tokens"), facts.get("training_tokens_per_second")
    seconds = options.epochs * tokens / speed if tokens and speed else None
    return Estimate(disk=disk, memory=memory, seconds=seconds)


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """Training; with `data.hidden_states.keep: until_trained` the states go once the draft is published."""
    releases = ("hidden_states",) if recipe.data.hidden_states.keep == "until_trained" else ()
    return (
        Step(
            "train",
            version=1,
            reads=("algorithm", "train", "seed"),
            inputs=("verifier", "tokens", "hidden_states", "vocabulary"),
            run=run,
            estimate=estimate,
            releases=releases,
        ),
    )
