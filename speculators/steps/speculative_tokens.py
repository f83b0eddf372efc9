"""How many tokens to draft a pass: the trained draft is served with 1, 2, 3 ... of them, and the fastest number wins.

More proposals cost more of draft and verifier and are accepted ever less often; where that turns depends on the draft,
the verifier, the machine and the load, so it is measured under the recipe's own benchmark.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from speculators.pipeline.step import Context, Estimate, Scope, Step
from speculators.steps.benchmark import engine_version
from speculators.steps.speed import verifier_memory

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe

Tried = Mapping[str, Any]
"""`speculative_tokens`, `output_tokens_per_second` (geometric mean over the points) and the figures of the `levels`."""


def run(context: Context) -> None:
    """Write speculative_tokens.json; every number is kept once it was measured, for another attempt after a kill."""
    parts = context.output / "parts"
    parts.mkdir(exist_ok=True)
    most = context.config.eval.acceptance.most_speculative_tokens
    files = [parts / f"{number}.json" for number in range(1, most + 1)]
    if not all(file.is_file() for file in files):
        _measure(context, files)
    curve = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    best = fastest(curve)
    whole = json.dumps({"best": best, "curve": curve}, indent=2)
    (context.output / "speculative_tokens.json").write_text(whole + "\n", encoding="utf-8")
    shutil.rmtree(parts)
    context.report.message(f"{best} speculative tokens are the fastest of 1 to {most}")


def fastest(curve: Sequence[Tried]) -> int:
    """The number with the most tokens per second; of equally fast ones the smallest."""
    return int(
        max(curve, key=lambda tried: (tried["output_tokens_per_second"], -tried["speculative_tokens"]))[
            "speculative_tokens"
        ]
    )


def _measure(context: Context, files: Sequence[Path]) -> None:
    """Serve the draft with each number whose file is not there yet, and write that file."""
    from speculators.checkpoints.trained import write_converted, write_trained
    from speculators.evaluation.served_points import held_out_load, measure_served, slots
    from speculators.evaluation.served_variant import Variant
    from speculators.verifiers.source import verifier_directory

    asked, verifier = context.config.eval.benchmark, verifier_directory(context.inputs["verifier"])
    load = held_out_load(context.inputs["prompts"], asked, context.config.seed)
    scratch = context.output / "scratch"
    for number, file in enumerate(files, start=1):
        if file.is_file():
            continue
        shutil.rmtree(scratch, ignore_errors=True)
        checkpoint = scratch / "checkpoint"
        if "convert" in context.inputs:
            write_converted(context.inputs["convert"], checkpoint, speculative_tokens=number)
        else:
            write_trained(
                context.inputs["train"],
                context.inputs["verifier"],
                checkpoint,
                speculative_tokens=number,
                dtype=context.config.convert.dtype,
            )
        served = Variant(
            verifier=verifier,
            checkpoint=checkpoint,
            dtype=context.config.verifier.dtype,
            slots=slots(asked.profile, load.requests),
            trust_remote_code=context.trust_remote_code,
            engine_arguments=context.engine_arguments,
        )

        def told(point: int, count: int, found: Mapping[str, Any], number: int = number) -> None:
            context.report.progress((number - 1) * count + point, len(files) * count, "points")

        levels = measure_served(served, context.config.verifier.engine, asked.profile, load, verifier, scratch, told)
        # Every point of a load counts alike, however fast it is.
        rate = geometric_mean([level["output_tokens_per_second"] for level in levels])
        tried = {"speculative_tokens": number, "output_tokens_per_second": rate, "levels": levels}
        context.report.metric(number, {"output_tokens_per_second": rate})
        written = file.with_suffix(".writing")
        written.write_text(json.dumps(tried), encoding="utf-8")
        written.replace(file)
    shutil.rmtree(scratch, ignore_errors=True)


def estimate(scope: Scope) -> Estimate:
    """A few figures; the time is unknown."""
    return Estimate(disk=1 << 20, memory=verifier_memory(scope), seconds=None)


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """No step where the recipe says the number itself."""
    acceptance = recipe.eval.acceptance
    if acceptance is None or acceptance.speculative_tokens != "auto":
        return ()
    load = ("profile", "requests_per_level", "max_tokens")
    return (
        Step(
            "speculative_tokens",
            version=1,
            reads=(
                "eval.acceptance.most_speculative_tokens",
                *(f"eval.benchmark.{name}" for name in load),
                *("verifier.dtype", "verifier.engine", "verifier.trust_remote_code", "convert", "seed"),
            ),
            inputs=("verifier", "prompts", "convert" if recipe.converts else "train"),
            run=run,
            external=engine_version,
            estimate=estimate,
            machine_bound=True,
        ),
    )
