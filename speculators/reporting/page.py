"""The report: one self-contained HTML page about a run, and its charts as PNG files beside it.

Nothing on the page is fetched from anywhere. What a run did not measure is left out or said in a sentence, so a failed
or half-finished run has a report as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from math import isfinite
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from speculators import __version__
from speculators.reporting.benchmark_charts import LoadPoint, Variant, benchmark_chart, load_charts
from speculators.reporting.card import walk_estimate
from speculators.reporting.charts import Chart, Curves, acceptance_chart, training_charts
from speculators.reporting.definitions import load_name, number, tables, temperature_name
from speculators.reporting.draft_length_chart import draft_length_chart
from speculators.reporting.folder import RunFolder, read_lines
from speculators.reporting.highlight import highlight
from speculators.reporting.picture import picture, spoken
from speculators.reporting.results import collect, step_inputs

SAMPLES = 6
"""How many answers are shown."""


@dataclass(frozen=True)
class Card:
    """A headline figure: what it is, the figure, and one line on how it was measured."""

    label: str
    figure: str
    note: str


@dataclass(frozen=True)
class Sample:
    """An answer in pieces (space before, text, accepted); accepted ones were drafted, the others are the verifier's."""

    prompt: str
    pieces: tuple[tuple[str, str, bool], ...]
    length: float | None
    """Tokens committed per pass of the verifier, over this answer."""


@dataclass(frozen=True)
class Page:
    """The finished page and the charts on it."""

    html: str
    charts: tuple[Chart, ...]


def write_report(run_folder: Path, into: Path | None = None) -> Path:
    """Write `report.html` and the charts' PNG files into `into` (default: the run folder); return the page's path.

    Raises UsageError when `run_folder` holds no run.
    """
    target = into or run_folder
    page = build_page(run_folder)
    for chart in page.charts:
        (target / f"{chart.name}.png").write_bytes(chart.png)
    place = target / "report.html"
    place.write_text(page.html, encoding="utf-8")
    return place


def build_page(run_folder: Path) -> Page:
    """Draw and lay out everything that is known about the run in `run_folder`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    run = RunFolder.open(run_folder)
    results = collect(run_folder)
    training, acceptance, benchmark, loads = _charts(run, results)
    lengths = _draft_lengths(results)
    inputs, steps = step_inputs(run), _with_this_page(results["steps"])
    environment = Environment(
        loader=PackageLoader("speculators.reporting", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, spoken=spoken)
    recipe = run.text("recipe.yaml", "recipe.resolved.yaml")
    resolved = run.text("recipe.resolved.yaml")
    html = environment.get_template("report.html.j2").render(
        results=results,
        headline=headline(results),
        cards=cards(results),
        date=_date(results["started"]),
        pictures=(picture(inputs, steps), picture(inputs, steps, downward=True)),
        shares=_shares(steps),
        failures=[(name, step.get("error")) for name, step in steps.items() if step["status"] == "failed"],
        training=training,
        acceptance=acceptance,
        benchmark=benchmark,
        loads=loads,
        lengths=lengths,
        tables=tables(results),
        samples=samples(run),
        recipe=highlight(recipe) if recipe else None,
        resolved=highlight(resolved) if resolved and resolved != recipe else None,
        environment=_flat(results["environment"]),
        guidellm=_guidellm(run, results["benchmark"]),
        checkpoint=_checkpoint(run),
        version=__version__,
    )
    return Page(html, (*training, *acceptance, *benchmark, *loads, *lengths))


def headline(results: Mapping[str, Any]) -> str:
    """The run in one sentence, as good or bad as it was."""
    parts = []
    suite, figures = _first(results["acceptance"])
    if figures.get("acceptance_length") is not None:
        parts.append(
            f"each pass of the verifier commits {figures['acceptance_length']:.2f} tokens on {_suite_name(suite)}"
        )
    ratio = results["speedup"]
    if ratio is not None:
        load = load_name(results["benchmark"]["speculator"])
        if ratio >= 1:
            parts.append(f"at {load} the server writes {ratio:.2f} times as many tokens per second as without it")
        else:
            parts.append(
                f"at {load} the server writes {100 * (1 - ratio):.0f}% fewer tokens per second than without it"
            )
    if not parts:
        return {
            "failed": "This run failed; the page shows how far it came.",
            "running": "This run has not finished; the page shows how far it is.",
            "interrupted": "This run was interrupted; finished work is kept, and running it again continues.",
        }.get(results["status"], "Neither acceptance nor speed was measured in this run.")
    return "With this draft, " + ", and ".join(parts) + "."


def cards(results: Mapping[str, Any]) -> list[Card]:
    """Acceptance length, speed-up, tokens per second of each variant; the walk estimate where a card is left."""
    found = []
    suite, figures = _first(results["acceptance"])
    if figures.get("acceptance_length") is not None:
        how = [_suite_name(suite), temperature_name(f"T{figures.get('temperature', 0.0)}")]
        if suite == "holdout" and figures.get("prompts"):
            how[0] = f"{figures['prompts']} held-out prompts"
        if figures.get("lossless") is True:
            how.append("lossless")
        elif figures.get("equal_prompts") is not None:
            how.append(f"{figures['equal_prompts']} answers equal to plain greedy decoding")
        found.append(Card("Acceptance length", f"{figures['acceptance_length']:.2f}", ", ".join(how)))
    benchmark = results["benchmark"]
    if results["speedup"] is not None:
        at = load_name(benchmark["speculator"])
        found.append(Card("Speed-up", f"{results['speedup']:.2f}×", f"output tokens per second, at {at}"))
    labels = {"speculator": "With the draft", "dense": "Without"}
    for variant, label in (labels | {name: name for name in benchmark if name not in labels}).items():
        rate = (benchmark.get(variant) or {}).get("output_tokens_per_second")
        if rate is not None:
            latency = (benchmark[variant].get("inter_token_latency_ms") or {}).get("p50")
            note = f"tokens per second, {latency:.1f} ms each" if latency is not None else "tokens per second"
            found.append(Card(label, f"{rate:.1f}", note))
    walk = walk_estimate((results["training"] or {}).get("best") or {})
    if walk is not None and len(found) < 4:
        found.append(Card("Walk estimate", f"{walk:.2f}", "acceptance length foreseen in training"))
    return found


def samples(run: RunFolder) -> list[Sample]:
    """The first few answers of the acceptance step, token by token."""
    found = []
    for sample in (run.json("acceptance", "acceptance.json").get("samples") or [])[:SAMPLES]:
        pieces: list[tuple[str, str, bool]] = []
        for piece in sample.get("pieces") or ():
            text, accepted = str(piece["text"]), bool(piece["accepted"])
            # Marks of neighbours touch; the space before the first of them stays unmarked.
            bare = text if accepted and pieces and pieces[-1][2] else text.lstrip() or text
            pieces.append((text.removesuffix(bare), bare, accepted))
        found.append(Sample(str(sample.get("prompt", "")), tuple(pieces), _length([one for _, _, one in pieces])))
    return found


def _length(accepted: Sequence[bool]) -> float | None:
    """Tokens per round: the first token comes from reading the prompt, and every round but a last one cut short ends
    with a token of the verifier's own."""
    rounds = sum(not one for one in accepted[1:]) + (1 if accepted[1:] and accepted[-1] else 0)
    return (len(accepted) - 1) / rounds if rounds else None


def curves(lines: Iterable[Mapping[str, Any]]) -> Curves:
    """The training's metrics as curves; `lines` are `{"at": step, name: value, ...}`.

    Held-out figures start with `holdout_`; accuracies end with their draft position, from 1.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "at" and isinstance(value, (int, float)) and isfinite(value):
                points.setdefault(name, []).append((float(line["at"]), float(value)))

    def by_position(prefix: str) -> dict[str, Sequence[tuple[float, float]]]:
        found = {int(name.removeprefix(prefix)): points[name] for name in points if re.fullmatch(prefix + r"\d+", name)}
        return {str(position): found[position] for position in sorted(found)}

    return Curves(
        loss=points.get("loss", ()),
        holdout_loss=points.get("holdout_loss", ()),
        accuracy=by_position("accuracy_"),
        holdout_accuracy=by_position("holdout_accuracy_"),
        walk=points.get("holdout_walk_estimate", ()),
    )


def _charts(
    run: RunFolder, results: Mapping[str, Any]
) -> tuple[tuple[Chart, ...], tuple[Chart, ...], tuple[Chart, ...], tuple[Chart, ...]]:
    lines = read_lines(run.file("train", "metrics.jsonl")) or [
        {"at": event.get("at", 0), **(event.get("values") or {})}
        for event in run.events
        if event.get("event") == "metric" and event.get("step") == "train"
    ]
    suite, figures = _first(results["acceptance"])
    rates = {
        temperature_name(name): reached
        for name, at in (figures.get("temperatures") or {}).items()
        if (reached := list(takewhile(lambda rate: rate is not None, at.get("positions") or ())))
    }
    variants = [
        Variant(name, figures["output_tokens_per_second"], _numbers(figures.get("inter_token_latency_ms")))
        for name, figures in results["benchmark"].items()
        if figures.get("output_tokens_per_second") is not None
    ]
    load = load_name(next(iter(results["benchmark"].values()), {}))
    return (
        training_charts(curves(lines)),
        (acceptance_chart(rates, _suite_name(suite)),) if rates else (),
        (benchmark_chart(variants, load),) if variants else (),
        _load_charts(results["benchmark"]),
    )


def _draft_lengths(results: Mapping[str, Any]) -> tuple[Chart, ...]:
    """How the number of speculative tokens was found, where it was."""
    found = results["speculative_tokens"]
    if found is None:
        return ()
    levels = (results["benchmark"].get("dense") or {}).get("levels") or ()
    dense = [level["output_tokens_per_second"] for level in levels]
    return (draft_length_chart(found["curve"], found["best"], geometric_mean(dense) if dense else None),)


def _load_charts(benchmark: Mapping[str, Any]) -> tuple[Chart, ...]:
    """Each variant over its points: by streams where all points have them, else by requests per second."""
    levels = [level for figures in benchmark.values() for level in figures.get("levels") or ()]
    by_streams = all(level.get("streams") is not None for level in levels)

    def place(level: Mapping[str, Any]) -> Any:
        """A sweep's ends have no rate but the one that came of them."""
        if by_streams:
            return level["streams"]
        return level["requests_per_second"] if level.get("rate") is None else level["rate"]

    points = {
        variant: [
            LoadPoint(
                place(level),
                level["output_tokens_per_second"],
                _numbers(level.get("inter_token_latency_ms")).get("p50"),
                level.get("acceptance_length"),
            )
            for level in figures.get("levels") or ()
        ]
        for variant, figures in benchmark.items()
    }
    return load_charts(points, "streams at once" if by_streams else "requests per second")


def _numbers(value: Any) -> dict[str, float]:
    return {key: number for key, number in value.items() if number is not None} if isinstance(value, Mapping) else {}


def _first(suites: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The held-out suite if it was measured, else the first."""
    if "holdout" in suites:
        return "holdout", suites["holdout"]
    return next(iter(suites.items()), ("", {}))


def _suite_name(suite: str) -> str:
    return "held-out prompts" if suite == "holdout" else suite


def _with_this_page(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The report is written while its own step still runs; on the page it counts as done."""
    return {
        name: {**step, "status": "finished"} if name == "report" and step["status"] == "running" else step
        for name, step in steps.items()
    }


def _shares(steps: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Step, seconds and share of the time for every step worth showing, the longest first."""
    spent = {name: step["seconds"] for name, step in steps.items() if step["status"] == "finished" and step["seconds"]}
    total = sum(spent.values())
    if total < 1:
        return []
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    shown = [(name, seconds, seconds / total) for name, seconds in ordered if seconds / total >= 0.02]
    rest = total - sum(seconds for _, seconds, _ in shown)
    return [*shown, ("others", rest, rest / total)] if rest / total >= 0.005 else shown


def _date(moment: str | None) -> str | None:
    if not moment:
        return None
    when = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _flat(value: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) lines."""
    lines: list[tuple[str, str]] = []
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            lines += _flat(inner, f"{path}{name} · " if name != "versions" else path)
        elif inner is not None:
            text = ", ".join(map(str, inner)) if isinstance(inner, (list, tuple)) else str(inner)
            if name == "memory" and isinstance(inner, int):
                text = f"{inner / 1e9:.1f} GB"
            if text:
                lines.append((path + str(name).replace("_", " "), text))
    return lines


def _guidellm(run: RunFolder, benchmark: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """By variant, names and links, relative to the run folder, of GuideLLM's own pages."""
    found = []
    for variant, figures in benchmark.items():
        step = f"benchmark-{variant}"
        place = run.artifact(step)
        loads = {level.get("files"): load_name(level) for level in figures.get("levels") or ()}
        pages = [page.relative_to(place) for page in sorted(place.glob("**/guidellm.html"))] if place else []
        links = [(loads.get(page.parent.as_posix(), "page"), f"steps/{step}/{page.as_posix()}") for page in pages]
        if links:
            found.append((variant, links))
    return found


def _checkpoint(run: RunFolder) -> str | None:
    return "steps/checkpoint" if run.artifact("checkpoint") else None
