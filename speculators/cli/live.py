"""How a run is shown: a table that moves in a terminal, plain lines elsewhere, and the bare events for machines."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import rich_click as click

from speculators.amounts import count_text, time_text

if TYPE_CHECKING:
    from rich.console import RenderableType

Event = dict[str, Any]

_MARKS = {
    "cached": "[green]●[/]",
    "finished": "[green]✓[/]",
    "running": "[yellow]▸[/]",
    "failed": "[red]✗[/]",
    "stopped": "[red]■[/]",
    "pending": "[dim]·[/]",
    "skipped": "[dim]○[/]",
}
_BAR_WIDTH = 20
_LAST_SECONDS, _LAST_SHARE = 20.0, 0.5
"""The rate is that of the last seconds, or of that share of a step: what finishes in bursts has a steady rate, and one
that changes its pace is followed."""


@dataclass
class Row:
    """What is known about one step."""

    name: str
    status: str = "pending"
    started: float | None = None
    seconds: float | None = None
    unit: str = ""
    done: int = 0
    total: int = 0
    progress: list[tuple[float, int]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    note: str = ""
    expected: float | None = None

    @property
    def rate(self) -> float | None:
        """Units a second, lately; None until there is a second to tell it from."""
        if len(self.progress) < 2:
            return None
        (then, before), (now, after) = self.progress[0], self.progress[-1]
        return (after - before) / (now - then) if now - then >= 1 and after > before else None


class Board:
    """The state of a run, folded from its events; `status` and the live view draw it."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.name, self.folder, self.status = "", "", "running"
        self.gates: list[Event] = []
        self.seconds: float | None = None

    def hear(self, event: Event) -> None:
        """Take in one event; times are those of the events, so a replay shows what was seen."""
        kind, moment = event["event"], _seconds(event["t"])
        if kind == "run_started":
            self.name, self.folder = event.get("name", ""), event.get("folder", "")
        elif kind == "planned":
            for step in event["steps"]:
                if step["state"] == "cached" and step["name"] in self.rows:  # it was fetched meanwhile
                    continue
                status = "skipped" if step["state"] in {"skipped", "remote"} else "pending"
                self.rows[step["name"]] = Row(
                    step["name"], status, note=step.get("why") or "", expected=step.get("seconds")
                )
        elif kind == "gate":
            self.gates.append(event)
        elif kind == "run_finished":
            self.status, self.seconds = event.get("status", "finished"), event.get("seconds")
            for running in self.rows.values():
                if running.status == "running":
                    running.status = "stopped"
        elif row := self.rows.get(event.get("step", "")):
            _hear_step(row, kind, moment, event)

    def render(self, *, moment: float | None = None) -> RenderableType:
        """The table as it stands."""
        from rich.table import Table

        at = time.time() if moment is None else moment
        table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=True, expand=True)
        table.add_column(width=1)
        table.add_column(no_wrap=True, min_width=max((len(name) for name in self.rows), default=1))
        table.add_column(justify="right", no_wrap=True, min_width=11)
        table.add_column(no_wrap=True, width=_BAR_WIDTH if self.status == "running" else 0)
        table.add_column(overflow="ellipsis", no_wrap=True, style="dim", ratio=1)
        for row in list(self.rows.values()):
            took = row.seconds if row.seconds is not None else at - row.started if row.started else None
            shown = time_text(took) if row.status not in {"cached", "pending", "skipped"} else row.status
            table.add_row(_MARKS[row.status], row.name, shown, _bar(row), _aside(row))
        return table


def _hear_step(row: Row, kind: str, moment: float, event: Event) -> None:
    if row.status == "skipped" and kind in {"progress", "message"}:  # it comes out of a remote store
        row.status, row.started = "running", moment
    if kind == "step_started":
        row.status, row.started, row.note = "running", moment, "continued" if event.get("resumed") else ""
    elif kind == "progress":
        if event["unit"] != row.unit or event["done"] < row.done:
            row.progress.clear()
        row.unit, row.done, row.total = event["unit"], event["done"], event["total"]
        row.progress.append((moment, row.done))
        span = max(_LAST_SECONDS, _LAST_SHARE * (moment - (row.started or moment)))
        while len(row.progress) > 2 and moment - row.progress[0][0] > span:
            row.progress.pop(0)
    elif kind == "metric":
        row.metrics.update({name: value for name, value in event["values"].items() if value is not None})
    elif kind == "message":
        row.note = event["text"]
    elif kind in {"step_finished", "step_cached", "step_failed"}:
        row.status = kind.removeprefix("step_")
        row.seconds = event.get("seconds")
        if row.seconds is None and row.started is not None:
            row.seconds = moment - row.started
        row.note = event.get("error") or "" if kind == "step_failed" else row.note if row.started else ""


def _bar(row: Row) -> RenderableType:
    from rich.progress_bar import ProgressBar

    if row.status != "running" or not row.total:
        return ""
    return ProgressBar(total=row.total, completed=min(row.done, row.total), width=_BAR_WIDTH)


def _aside(row: Row) -> str:
    """Right of the bar: how far, how fast, how long yet, and the newest figures."""
    from rich.markup import escape

    if row.status != "running":
        return escape(row.note.splitlines()[0]) if row.note and row.status != "pending" else ""
    parts = [progress_text(row)] if row.total else []
    parts += [f"{name} {value:.4g}" for name, value in list(row.metrics.items())[:4]]
    return escape("   ".join([*parts, row.note.splitlines()[0] if row.note else ""]).strip())


def progress_text(row: Row) -> str:
    """`18 944/65 536 tokens  1 290/s  36 s left`."""
    text = f"{count_text(row.done)}/{count_text(row.total)} {row.unit}"
    rate = row.rate
    if rate:
        text += f"  {count_text(rate) if rate >= 10 else f'{rate:.2g}'}/s"
        if row.done < row.total:
            text += f"  {time_text((row.total - row.done) / rate)} left"
    return text


@contextlib.contextmanager
def showing(*, as_json: bool, quiet: bool = False) -> Iterator[tuple[Board, Callable[[Event], None]]]:
    """A board, and a listener that keeps it and shows the run to whoever is there.

    With `as_json`, standard output gets exactly the events, a line each, and people see the run on standard error.
    """
    from rich.console import Console

    console = Console(stderr=as_json, highlight=False)
    board = Board()
    plain = Lines(console.file)

    def listen(event: Event) -> None:
        if as_json:
            sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        board.hear(event)
        if not quiet and not console.is_terminal:
            plain.tell(event, board)

    if not console.is_terminal or quiet:
        yield board, listen
        return
    from rich.live import Live

    with Live(get_renderable=board.render, console=console, refresh_per_second=8) as live:
        yield board, listen
        live.refresh()


class Lines:
    """One plain line for each event that matters; progress at most every ten seconds a step."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._told: dict[str, float] = {}

    def tell(self, event: Event, board: Board) -> None:
        """Print the event, if it matters."""
        text = self._text(event, board)
        if text:
            click.echo(text, file=self._stream)

    def _text(self, event: Event, board: Board) -> str | None:
        kind, step = event["event"], event.get("step", "")
        if kind == "run_started":
            return f"{event.get('name', '')}: {event.get('folder', '')}"
        if kind == "step_started":
            return f"{step}: started{', where it was left' if event.get('resumed') else ''}"
        if kind == "step_finished":
            return f"{step}: finished in {time_text(event.get('seconds'))}"
        if kind == "step_cached":
            return f"{step}: cached"
        if kind == "step_failed":
            return f"{step}: FAILED, {event.get('error')}"
        if kind == "message":
            return f"{step}: {event['text']}" if step else str(event["text"])
        if kind == "gate":
            value = "not measured" if event["value"] is None else f"{event['value']:.4g}"
            return f"gate {'passed' if event['passed'] else 'MISSED'}: {event['gate']} (found {value})"
        if kind == "progress" and step in board.rows:
            moment = _seconds(event["t"])
            if moment - self._told.get(step, -1e9) >= 10 or event["done"] >= event["total"]:
                self._told[step] = moment
                return f"{step}: {progress_text(board.rows[step])}"
        return None


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
