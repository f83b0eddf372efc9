"""The report: everything the run measured on one page, and its charts as PNG files."""

from __future__ import annotations

from speculators.pipeline.step import Context, Step
from speculators.recipe.shapes.recipe import Recipe


def run(context: Context) -> None:
    """Write `report.html` and the PNG files into the run folder, which is this step's output."""
    from speculators.reporting.page import write_report

    place = write_report(context.output)
    context.report.message(f"report: {place}")


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """The report, after every step of this recipe whose figures it shows; never cached, it takes a second."""
    judged = ("acceptance",) if recipe.eval.acceptance else ()
    variants = recipe.eval.benchmark.variants if recipe.eval.benchmark else ()
    served = tuple(f"benchmark-{variant.name}" for variant in variants)
    made = "convert" if recipe.converts else "train"
    inputs = (made, "checkpoint", *judged, *served)
    return (Step("report", version=1, reads=("name",), inputs=inputs, run=run, cached=False),)
