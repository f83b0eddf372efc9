"""What each figure of a report means, and the table of all of them.

The definitions are the product's own; the figures are named for what they are and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure's name, what it is, and its values as text, one a column."""

    name: str
    meaning: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a heading; `columns` name the values."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """A figure as printed on the page: fixed digits, thousands set apart, a dash for what was not measured."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        digits = 0
    return f"{value:,.{digits}f}".replace(",", "\u202f") + (f"\u00a0{unit}" if unit else "")


def tables(results: Mapping[str, Any]) -> tuple[Table, ...]:
    """Every figure of the run with its definition: acceptance, benchmark, training; only what was measured."""
    return tuple(
        table
        for table in (
            *(_acceptance(suite, figures) for suite, figures in (results.get("acceptance") or {}).items()),
            *_benchmark(results.get("benchmark") or {}),
            _training(results.get("training") or {}),
        )
        if table.rows
    )


ACCEPTANCE = (
    ("acceptance_length", "Acceptance length", "Tokens committed per pass of the verifier, its own token included.", 3),
    ("rounds", "Rounds", "Passes of the verifier over a running answer; the one that reads the prompt is none.", 0),
    ("tokens", "Tokens", "Tokens committed in those rounds.", 0),
    ("prompts", "Prompts", "Prompts answered; held-out ones were never seen in training.", 0),
    ("speculative_tokens", "Draft length", "Tokens drafted in each round.", 0),
    ("least_confidence", "Least confidence", "A draft ends where its trust in all its tokens falls below this.", 2),
    ("proposed_length", "Proposed tokens", "Tokens proposed per round, on average, where drafts end early.", 2),
    ("tokens_per_second", "Tokens/s", "Committed per second of wall time in this measurement.", 1),
    ("lossless", "Lossless", "All answers equal those of plain greedy decoding, token for token.", 0),
    ("equal_prompts", "Equal answers", "Answers equal to those of plain greedy decoding, token for token.", 0),
)


def _acceptance(suite: str, figures: Mapping[str, Any]) -> Table:
    by_temperature: Mapping[str, Mapping[str, Any]] = figures.get("temperatures") or {}
    runs = list(by_temperature.values())
    rows = [
        Row(name, meaning, tuple(number(run.get(key), digits) for run in runs))
        for key, name, meaning, digits in ACCEPTANCE
        if any(run.get(key) is not None for run in runs)
    ]
    depth = max((len(run.get("positions") or ()) for run in runs), default=0)
    for position in range(depth):
        meaning = "Accepted share of those tokens whose predecessors in the draft were all accepted."
        name, meaning = (
            f"Acceptance at position {position + 1}",
            meaning if position else "Accepted share of first drafted tokens.",
        )
        rows.insert(1 + position, Row(name, meaning, _position(runs, position)))
    return Table(f"Acceptance on {suite}", tuple(temperature_name(name) for name in by_temperature), tuple(rows))


def temperature_name(key: str) -> str:
    """`T0.0` as `temperature 0`."""
    try:
        return f"temperature {float(key.lstrip('T')):g}"
    except ValueError:
        return key


def _position(runs: Sequence[Mapping[str, Any]], position: int) -> tuple[str, ...]:
    """A rate is null, or missing, where no round came as far as this position."""
    rates = [[*(run.get("positions") or ()), *[None] * (position + 1)][position] for run in runs]
    return tuple(number(None if rate is None else 100 * rate, 1, "%") for rate in rates)


BENCHMARK = (
    (
        "output_tokens_per_second",
        "",
        "Output tokens/s",
        "Tokens the server wrote per second, all streams together.",
        2,
        "",
    ),
    (
        "inter_token_latency_ms",
        "p50",
        "Between tokens, median",
        "From one token of an answer to the next; the mean of each request, weighted by its tokens.",
        2,
        "ms",
    ),
    (
        "inter_token_latency_ms",
        "p95",
        "Between tokens, 95%",
        "95 of 100 tokens belong to requests with a smaller mean gap.",
        2,
        "ms",
    ),
    ("inter_token_latency_ms", "p99", "Between tokens, 99%", "The same for 99 of 100 tokens.", 2, "ms"),
    ("time_to_first_token_ms", "p50", "First token, median", "From sending a request to its first token.", 1, "ms"),
    ("time_to_first_token_ms", "p95", "First token, 95%", "19 of 20 requests saw their first token sooner.", 1, "ms"),
    ("time_to_first_token_ms", "p99", "First token, 99%", "99 of 100 requests saw their first token sooner.", 1, "ms"),
    ("request_latency_s", "p50", "Whole answer, median", "From sending a request to its last token.", 2, "s"),
    ("request_latency_s", "p95", "Whole answer, 95%", "19 of 20 requests were complete sooner.", 2, "s"),
    ("request_latency_s", "p99", "Whole answer, 99%", "99 of 100 requests were complete sooner.", 2, "s"),
    (
        "acceptance_length",
        "",
        "Acceptance length, served",
        "Tokens per pass of the verifier, counted by the server.",
        3,
        "",
    ),
    ("rate", "", "Requests/s, sent", "The constant rate at which requests were sent.", 2, ""),
    ("requests_per_second", "", "Requests/s, answered", "Requests answered per second.", 2, ""),
    ("requests", "", "Requests", "Requests made and answered at this point.", 0, ""),
)


def _benchmark(benchmark: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """One table a point, the variants side by side."""
    variants = [figures.get("levels") or [figures] for figures in benchmark.values()]
    found = []
    for place in range(max(map(len, variants), default=0)):
        levels: list[Mapping[str, Any]] = [points[place] if place < len(points) else {} for points in variants]
        rows = []
        for key, part, name, meaning, digits, unit in BENCHMARK:
            values = [_part(level.get(key), part) for level in levels]
            if any(value is not None for value in values):
                rows.append(Row(name, meaning, tuple(number(value, digits, unit) for value in values)))
        for position in range(max(len(level.get("positions") or ()) for level in levels)):
            name, meaning = f"Acceptance at position {position + 1}, served", "Conditional, from the same counters."
            rows.append(Row(name, meaning, _position(levels, position)))
        names = list(dict.fromkeys(load_name(level) for level in levels if level))
        # The variants of a sweep have constant rates of their own.
        title = names[0] if len(names) == 1 else f"a constant rate, {' and '.join(names)}"
        found.append(Table(f"Benchmark at {title}", tuple(benchmark), tuple(rows)))
    return found


def load_name(level: Mapping[str, Any]) -> str:
    """A point of a benchmark in words: `1 stream`, `4 streams`, `full load`, `2.5 requests per second`."""
    streams, rate = level.get("streams"), level.get("rate")
    if rate is not None:
        return f"{rate:.3g} requests per second"
    if streams is None:
        return "full load" if level.get("profile") == "throughput" else "one load"
    return f"{streams} stream{'' if streams == 1 else 's'}"


def _part(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part or "mean")
    return None if part in ("p95", "p99") else value


def _training(training: Mapping[str, Any]) -> Table:
    best = training.get("best") or {}
    rows = [
        Row(name, meaning, (number(value, digits, unit),))
        for name, meaning, value, digits, unit in (
            (
                "Walk estimate",
                "Acceptance length the verifier's own answers would have given, counted without decoding.",
                best.get("walk_estimate"),
                3,
                "",
            ),
            (
                "Held-out loss",
                "The objective on documents kept out of training, at the best step.",
                best.get("loss"),
                3,
                "",
            ),
            ("Best step", "The optimizer step whose draft was kept.", best.get("at"), 0, ""),
            ("Tokens trained on", "Tokens read in training, all epochs together.", training.get("tokens"), 0, ""),
            ("Training speed", "Tokens per second of wall time.", training.get("tokens_per_second"), 0, "tokens/s"),
            (
                "Waiting for data",
                "Share of the training time in which the next batch was not yet there.",
                training.get("data_wait"),
                3,
                "",
            ),
        )
        if value is not None
    ]
    return Table("Training", ("",), tuple(rows))
