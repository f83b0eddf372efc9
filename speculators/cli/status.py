"""`speculators status [RUN]`: how a run is getting on, or how it ended, from its events."""

from __future__ import annotations

import json
import os
from pathlib import Path

import rich_click as click

from speculators.cli.asked import runs_option
from speculators.errors import UsageError


@click.command("status")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Every step's state as JSON.")
def command(run: Path | None, runs: Path, as_json: bool) -> None:
    """Show how RUN is getting on.

    RUN is a run's folder, or the name of a recipe for its newest run; without it, the newest run of all.
    """
    from rich.console import Console

    from speculators.cli.live import Board
    from speculators.pipeline.events import EventTail

    folder = find_run(runs, run)
    board = Board()
    last = None
    runner: int | None = None
    for event in EventTail(folder / "events.jsonl").read():
        board.hear(event)
        last = event["t"]
        runner = event.get("pid", runner) if event["event"] == "run_started" else runner
    if board.status == "running" and runner is not None and not _lives(runner):
        board.status = "killed"
        for row in board.rows.values():
            row.status = "stopped" if row.status == "running" else row.status
    if as_json:
        steps = {row.name: {"status": row.status, "seconds": row.seconds} for row in board.rows.values()}
        click.echo(json.dumps({"run": str(folder), "name": board.name, "status": board.status, "steps": steps}))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{board.name}[/]   {board.status}   {folder}", soft_wrap=True)
    console.print(board.render(moment=None if board.status == "running" else _moment(last)))


def find_run(runs: Path, run: Path | None) -> Path:
    """The folder that is meant; raises UsageError when there is none."""
    named = [] if run is None else [run, run / "latest", runs / run / "latest"]
    candidates = named or sorted(runs.glob("*/latest"), key=lambda place: place.lstat().st_mtime, reverse=True)
    for place in candidates:
        if (place / "events.jsonl").is_file():
            return place.resolve()
    raise UsageError(f"there is no run {run}" if run is not None else f"there is no run in {runs.absolute()}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _moment(text: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0
