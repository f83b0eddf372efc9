"""`speculators report [RUN]`: write a run's page, charts and results again, from what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from speculators.errors import UsageError


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Where runs lie; without RUN the newest of them is taken.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of the path of the page.")
def command(run: Path | None, runs: Path, as_json: bool) -> None:
    """Write the report and the results of RUN again.

    RUN is a run folder, or a recipe's folder of runs, or the name of a recipe; without it, the newest run.
    """
    from speculators.reporting.page import write_report
    from speculators.reporting.results import write_results

    folder = find_run(run, runs)
    results = write_results(folder)
    page = write_report(folder)
    click.echo(json.dumps(json.loads(results.read_text(encoding="utf-8"))) if as_json else str(page))


def find_run(run: Path | None, runs: Path) -> Path:
    """The run folder that is meant; raises UsageError, naming what was looked for, when there is none."""
    starts = [runs] if run is None else [run, runs / run]
    for start in starts:
        found = [
            plan.parent for pattern in ("plan.json", "*/plan.json", "*/*/plan.json") for plan in start.glob(pattern)
        ]
        found = [folder for folder in found if not folder.is_symlink()] or found
        if found:
            return max(found, key=lambda folder: (folder / "plan.json").stat().st_mtime_ns)
    raise UsageError(f"no run in {' or '.join(str(start) for start in starts)}: a run folder holds a plan.json")
