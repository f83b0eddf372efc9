"""`speculators report [RUN]`: write a run's page, charts and results again, from what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from speculators.cli.asked import runs_option
from speculators.cli.status import find_run


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of the path of the page.")
def command(run: Path | None, runs: Path, as_json: bool) -> None:
    """Write the report and the results of RUN again.

    RUN is a run's folder, or the name of a recipe for its newest run; without it, the newest run of all.
    """
    from speculators.reporting.page import write_report
    from speculators.reporting.results import write_results

    folder = find_run(runs, run)
    results = write_results(folder)
    page = write_report(folder)
    click.echo(json.dumps(json.loads(results.read_text(encoding="utf-8"))) if as_json else str(page))
