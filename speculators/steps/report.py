"""The report: everything the run measured on one page, and its charts as PNG files."""

from __future__ import annotations

from collections.abc import Iterable

from speculators.pipeline.step import Context, Step

SHOWN = ("train", "checkpoint", "acceptance", "benchmark-dense", "benchmark-speculator")
"""The steps whose figures the page shows; it waits for those that the recipe has."""


def run(context: Context) -> None:
    """Write `report.html` and the PNG files into the run folder."""
    from speculators.reporting.page import write_report

    place = write_report(context.output)
    context.report.message(f"report: {place}")


def step(names: Iterable[str]) -> Step:
    """The report of a graph with the steps `names`; never cached, it takes a second."""
    present = set(names)
    return Step(
        "report",
        version=1,
        reads=("name", "description"),
        inputs=tuple(name for name in SHOWN if name in present),
        run=run,
        cached=False,
    )
