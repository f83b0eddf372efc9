"""The charts of a report: drawn once by matplotlib, kept as SVG for the page and as PNG beside it.

The SVG names its colours as CSS variables and its font as the page's own, so the same drawing follows the page into
dark mode. The series colours are from the palette of Okabe and Ito, told apart by every common kind of colour vision;
bars and lines are labelled as well, so that nothing rests on colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Series = Sequence[tuple[float, float]]
"""Points (step, value) of a curve, in order."""

INK, QUIET, GRID, ON_BAR = "#1d2129", "#5d6673", "#dfe3e8", "#fdfdfd"
DRAFT, DENSE, THIRD, FOURTH = "#0072b2", "#7c8591", "#d55e00", "#009e73"
VARIABLES = {
    INK: "--ink",
    QUIET: "--quiet",
    GRID: "--line",
    DRAFT: "--draft",
    DENSE: "--dense",
    THIRD: "--third",
    FOURTH: "--fourth",
    ON_BAR: "--on-bar",
}
"""Every colour a chart may use, and the CSS variable that stands for it on the page."""

STYLE: dict[str, Any] = {
    "svg.hashsalt": "speculators",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "legend.frameon": False,
    "legend.edgecolor": GRID,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curves:
    """What training told on the way: values over optimizer steps, on the training and on the held-out documents."""

    loss: Series = ()
    holdout_loss: Series = ()
    accuracy: Mapping[str, Series] = field(default_factory=dict)
    """On the training batches, by draft position, `"1"` first."""
    holdout_accuracy: Mapping[str, Series] = field(default_factory=dict)
    walk: Series = ()
    """The walk estimate of the acceptance length."""


@dataclass(frozen=True)
class Chart:
    """A drawing: its file's stem, what it shows in words, `svg` for the page and `png` for everywhere else."""

    name: str
    title: str
    words: str
    svg: str
    png: bytes


def training_charts(curves: Curves) -> tuple[Chart, ...]:
    """Loss, accuracy by draft position and the walk estimate over optimizer steps, as far as there are points."""
    charts = []
    if curves.loss or curves.holdout_loss:
        first, last = ((s := _smooth([value for _, value in curves.loss or curves.holdout_loss]))[0], s[-1])
        words = f"Loss by optimizer step, from {first:.2f} to {last:.2f}."
        charts.append(drawn("loss", "Loss", words, (3.7, 2.9), lambda axes: _loss(axes[0], curves)))
    if judged := curves.holdout_accuracy or curves.accuracy:
        ends = ", ".join(f"position {name} {100 * points[-1][1]:.0f}%" for name, points in judged.items())
        words = f"Accuracy by draft position and optimizer step; at the end {ends}."
        charts.append(
            drawn("accuracy", "Accuracy by draft position", words, (3.7, 2.9), lambda axes: _accuracy(axes[0], curves))
        )
    if curves.walk:
        words = f"Walk estimate of the acceptance length by optimizer step; at the end {curves.walk[-1][1]:.2f}."
        charts.append(drawn("walk", "Walk estimate", words, (3.7, 2.9), lambda axes: _walk(axes[0], curves.walk)))
    return tuple(charts)


def acceptance_chart(by_temperature: Mapping[str, Sequence[float]], suite: str) -> Chart:
    """Bars of the conditional acceptance rate by draft position, one group a position, one bar a temperature."""
    figures = "; ".join(
        f"{label}: " + ", ".join(f"position {i} {100 * rate:.0f}%" for i, rate in enumerate(rates, 1))
        for label, rates in by_temperature.items()
    )
    words = f"Conditional acceptance on {suite}: {figures}."
    return drawn(
        "acceptance", "Acceptance by position", words, (5.4, 3.1), lambda axes: _positions(axes[0], by_temperature)
    )


def drawn(
    name: str, title: str, words: str, size: tuple[float, float], draw: Callable[[list[Any]], None], columns: int = 1
) -> Chart:
    """Draw on a figure of `size` inches with `columns` panels; without pyplot, which keeps global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    vector, pixels = io.StringIO(), io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(list(figure.subplots(1, columns, squeeze=False)[0]))
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(pixels, format="png", dpi=160, facecolor="#ffffff", metadata={"Software": None})
    return Chart(name, title, words, _for_the_page(vector.getvalue(), name), pixels.getvalue())


def _loss(axis: Any, curves: Curves) -> None:
    if curves.loss:
        steps, values = zip(*curves.loss, strict=True)
        axis.plot(steps, values, color=GRID, linewidth=1.2)
        axis.plot(steps, _smooth(values), color=DRAFT, label="training")
    if curves.holdout_loss:
        steps, values = zip(*curves.holdout_loss, strict=True)
        axis.plot(steps, values, color=THIRD, marker="o", markersize=4, label="held out")
    _finish_curve(axis, "Loss")
    axis.legend(loc="upper right")


def _accuracy(axis: Any, curves: Curves) -> None:
    highest = 0.0
    for index, position in enumerate(curves.holdout_accuracy or curves.accuracy):
        colour, label = (DRAFT, THIRD, FOURTH, QUIET)[index % 4], f"position {position}"
        for points, is_held_out in (
            (curves.accuracy.get(position, ()), False),
            (curves.holdout_accuracy.get(position, ()), True),
        ):
            if points:
                steps, values = zip(*points, strict=True)
                shares = [100 * value for value in (values if is_held_out else _smooth(values))]
                highest = max(highest, *shares)
                dots: dict[str, Any] = (
                    {"marker": "osD^"[index % 4], "markersize": 4} if is_held_out else {"linewidth": 1.1}
                )
                named = label if is_held_out or not curves.holdout_accuracy else None
                axis.plot(steps, shares, color=colour, label=named, **dots)
    _finish_curve(axis, "Accuracy by draft position")
    if curves.holdout_accuracy:
        axis.set_xlabel("optimizer step (with marks: held out)")
    axis.set_ylim(0, 1.45 * max(highest, 1.0))  # room for the legend above the curves
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    axis.legend(loc="upper left", ncols=2, columnspacing=1.2)


def _walk(axis: Any, walk: Series) -> None:
    steps, values = zip(*walk, strict=True)
    axis.plot(steps, values, color=DRAFT, marker="o", markersize=4)
    best = max(range(len(values)), key=values.__getitem__)
    place = (steps[best], values[best])
    axis.annotate(f"{values[best]:.2f}", place, xytext=(0, 7), textcoords="offset points", ha="center", weight="bold")
    axis.margins(x=0.08, y=0.2)
    _finish_curve(axis, "Walk estimate of acceptance length")


def _finish_curve(axis: Any, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title)
    axis.grid(axis="y")
    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axis.yaxis.set_major_locator(MaxNLocator(5))


def _positions(axis: Any, by_temperature: Mapping[str, Sequence[float]]) -> None:
    count = max(len(rates) for rates in by_temperature.values())
    width = 0.72 / len(by_temperature)
    for index, (label, rates) in enumerate(by_temperature.items()):
        colour = (DRAFT, THIRD, FOURTH, DENSE)[index % 4]
        places = [position + 1 + (index - (len(by_temperature) - 1) / 2) * width for position in range(len(rates))]
        bars = axis.bar(places, [100 * rate for rate in rates], width=width * 0.92, color=colour, label=label)
        axis.bar_label(bars, labels=[f"{100 * rate:.0f}%" for rate in rates], padding=3, fontsize=9, color=INK)
    highest = 100 * max(max(rates, default=0.0) for rates in by_temperature.values())
    axis.set_ylim(0, 1.3 * max(highest, 5.0))
    axis.set_yticks([])
    axis.set_xticks(range(1, count + 1), [f"position {position}" for position in range(1, count + 1)])
    axis.set_title("Accepted, given that all before were")
    axis.legend(loc="upper right", ncols=2, columnspacing=1.2)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about a twentieth of the curve."""
    reach = max(1, len(values) // 40)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _for_the_page(svg: str, name: str) -> str:
    """Matplotlib's file as an inline picture: no prologue, no metadata, own ids, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL
    )  # its rules would reach the whole page
    svg = re.sub(r"font: ((?:bold |\d{3} )?[\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)  # before matplotlib 3.11
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg).strip()
