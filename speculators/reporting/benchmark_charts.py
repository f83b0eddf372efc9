"""The charts of a benchmark: the variants side by side at the first point, and each variant over all points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speculators.reporting.charts import DENSE, DRAFT, FOURTH, INK, ON_BAR, QUIET, THIRD, Chart, drawn

SIDE_BY_SIDE = 2
"""More variants than these get lying bars, which leave room for their names."""


@dataclass(frozen=True)
class Variant:
    """One served variant at one level of load: tokens per second, and milliseconds between tokens."""

    name: str
    tokens_per_second: float
    inter_token_ms: Mapping[str, float]
    """`p50`, `p95`, `mean`, as far as measured."""

    @property
    def middle(self) -> float:
        """The median, or the mean where no median was kept."""
        return self.inter_token_ms.get("p50", self.inter_token_ms.get("mean", 0.0))

    @property
    def top(self) -> float:
        """The 95th percentile, where it was kept."""
        return max(self.inter_token_ms.get("p95", 0.0), self.middle)


@dataclass(frozen=True)
class LoadPoint:
    """A variant under one load: `at` is the number of streams, or of requests per second."""

    at: float
    tokens_per_second: float
    inter_token_ms: float | None = None
    """The median."""
    acceptance_length: float | None = None


def benchmark_chart(variants: Sequence[Variant], load: str) -> Chart:
    """Output tokens per second, and milliseconds per token (bar: median or mean, whisker: 95th percentile)."""
    figures = "; ".join(
        f"{variant.name} {variant.tokens_per_second:.1f} tokens per second, {variant.middle:.1f} ms between tokens"
        for variant in variants
    )
    columns = _standing if len(variants) <= SIDE_BY_SIDE else _lying
    return drawn(
        "benchmark",
        "Throughput and latency",
        f"{figures}, at {load}.",
        (5.4, 3.1),
        lambda axes: _throughput(axes, variants, columns),
        columns=2,
    )


def load_charts(variants: Mapping[str, Sequence[LoadPoint]], axis: str) -> tuple[Chart, ...]:
    """Tokens per second, median milliseconds per token and acceptance length over the load, a curve for each variant.

    `axis` says what the load is counted in. No chart where no variant has two points.
    """
    if all(len(points) < 2 for points in variants.values()):
        return ()
    panels: tuple[tuple[str, str, Callable[[LoadPoint], float | None]], ...] = (
        ("load-throughput", "Output tokens/s", lambda point: point.tokens_per_second),
        ("load-latency", "Milliseconds per token", lambda point: point.inter_token_ms),
        ("load-acceptance", "Acceptance length", lambda point: point.acceptance_length),
    )
    charts = []
    for name, title, value in panels:
        curves = {
            variant: sorted((point.at, found) for point in points if (found := value(point)) is not None)
            for variant, points in variants.items()
        }
        if any(curves.values()):
            charts.append(_load_chart(name, title, curves, axis))
    return tuple(charts)


def _load_chart(name: str, title: str, curves: Mapping[str, Sequence[tuple[float, float]]], axis: str) -> Chart:
    figures = "; ".join(
        f"{variant} "
        + ", ".join(f"{value:.2f} at {at:g}" if at >= 10 else f"{value:.2f} at {at:.3g}" for at, value in curve)
        for variant, curve in curves.items()
        if curve
    )
    return drawn(
        name, title, f"{title} by {axis}: {figures}.", (3.7, 2.9), lambda axes: _curves(axes[0], title, curves, axis)
    )


def _curves(axis: Any, title: str, curves: Mapping[str, Sequence[tuple[float, float]]], along: str) -> None:
    from matplotlib.ticker import MaxNLocator

    places = sorted({at for curve in curves.values() for at, _ in curve})
    for index, (variant, colour) in enumerate(zip(curves, _colours(list(curves)), strict=True)):
        if curves[variant]:
            at, values = zip(*curves[variant], strict=True)
            size = max(3.5, 7.0 - 1.5 * index)  # what lies beneath an equal curve still shows
            axis.plot(at, values, color=colour, marker="osD^v"[index % 5], markersize=size, label=variant)
    highest = max(value for curve in curves.values() for _, value in curve)
    lowest = 1.0 if title == "Acceptance length" else 0.0
    axis.set_ylim(lowest, lowest + 1.4 * max(highest - lowest, 0.05))  # room for the legend above the curves
    if places[-1] >= 4 * places[0] and all(place == int(place) for place in places):
        axis.set_xscale("log", base=2)
        axis.minorticks_off()
        axis.set_xticks(places, [f"{place:g}" for place in places])
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.set_title(title)
    axis.set_xlabel(along)
    axis.grid(axis="y")
    axis.legend(loc="upper left", ncols=2, columnspacing=1.2)


def _colours(names: Sequence[str]) -> list[str]:
    """A colour for each variant, always the same for `dense` and `speculator`."""
    others = [name for name in names if name not in ("dense", "speculator")]
    known = {"dense": DENSE, "speculator": DRAFT}
    return [known.get(name) or (THIRD, FOURTH, INK)[others.index(name) % 3] for name in names]


def _throughput(axes: list[Any], variants: Sequence[Variant], columns: Callable[..., None]) -> None:
    names = [variant.name for variant in variants]
    columns(axes[0], names, [variant.tokens_per_second for variant in variants], "Output tokens/s")
    middle, tops = [variant.middle for variant in variants], [variant.top for variant in variants]
    columns(axes[1], names, middle, "Milliseconds per token", tops)


def _standing(axis: Any, names: list[str], values: list[float], title: str, tops: list[float] | None = None) -> None:
    """Bars with their values above; `tops` are the ends of whiskers."""
    places = list(range(len(names)))
    bars = axis.bar(places, values, width=0.62, color=_colours(names))
    ends = tops or values
    if tops:
        spread = [top - value for top, value in zip(tops, values, strict=True)]
        axis.errorbar(
            places, values, yerr=[[0.0] * len(values), spread], fmt="none", color=QUIET, ecolor=QUIET, capsize=4
        )
        axis.bar_label(
            bars, labels=[f"{value:.1f}" for value in values], label_type="center", color=ON_BAR, weight="bold"
        )
        for place, top in zip(places, tops, strict=True):
            note = f"95%: {top:.1f}"
            axis.annotate(
                note, (place, top), xytext=(0, 4), textcoords="offset points", ha="center", color=QUIET, fontsize=9
            )
    else:
        axis.bar_label(bars, labels=[f"{value:.1f}" for value in values], padding=3, weight="bold")
    axis.set_ylim(0, 1.15 * max([*ends, 1e-9]))
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_xticks(places, names, color=INK)
    axis.set_yticks([])
    axis.set_title(title)


def _lying(axis: Any, names: list[str], values: list[float], title: str, tops: list[float] | None = None) -> None:
    """Bars from the left with their values behind them, and their names in the first panel; `tops` end whiskers."""
    places = list(range(len(names)))
    axis.barh(places, values, height=0.62, color=_colours(names))
    ends = tops or values
    if tops:
        spread = [top - value for top, value in zip(tops, values, strict=True)]
        axis.errorbar(values, places, xerr=[[0.0] * len(values), spread], fmt="none", ecolor=QUIET, capsize=4)
    for place, value, end in zip(places, values, ends, strict=True):
        note = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{value:.1f}", (end, place), weight="bold", **note)
    axis.set_xlim(0, 1.35 * max([*ends, 1e-9]))
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_yticks(places, [""] * len(names) if tops else names, color=INK)
    axis.set_xticks([])
    if tops:
        axis.set_xlabel("median; whiskers end at 95%", fontsize=9)
    axis.set_title(title)
