"""The figures of `algorithms.py` as a Markdown table and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Found = Mapping[str, Mapping[str, Any]]
"""Algorithm -> its figures."""

COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "parameters": lambda one: f"{one['parameters'] / 1e6:.1f} M",
    "training": lambda one: f"{one['training_seconds']:.0f} s",
    "loss": lambda one: f"{one['first_loss']:.2f} to {one['last_loss']:.2f}",
    "untrained": lambda one: f"{one['untrained_acceptance_length']:.2f}",
    "acceptance length": lambda one: f"{one['acceptance_length']:.3f}",
    "accepted by position": lambda one: " ".join("-" if rate is None else f"{rate:.2f}" for rate in one["positions"]),
    "drafting a token": lambda one: f"{one['drafting_ms']:.1f} ms",
    "speed": lambda one: f"{one['speed_ratio']:.2f}",
    "in vLLM": lambda one: f"{one['vllm_speed_ratio']:.2f}" if "vllm_speed_ratio" in one else "-",
    "equal answers": lambda one: f"{one['equal_answers']} of {one['answers']}",
}

EMBEDDED, VLLM, QUIET = "#0072b2", "#d55e00", "#7c8591"


def by_length(found: Found) -> list[str]:
    """The algorithms, the longest acceptance first."""
    return sorted(found, key=lambda name: -found[name]["acceptance_length"])


def table(found: Found) -> str:
    """All figures as a Markdown table."""
    rows = [["algorithm", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[f"`{name}`", *(tell(found[name]) for tell in COLUMNS.values())] for name in by_length(found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(found: Found, file: Path) -> None:
    """What each draft earns and what it costs, beside each other; the file's name says in which format."""
    from matplotlib.figure import Figure

    names = by_length(found)[::-1]
    rows = range(len(names))
    figure = Figure(figsize=(9.0, 0.36 * len(names) + 1.5), layout="constrained")
    length, cost, speed = figure.subplots(1, 3, sharey=True)
    for axes, title in (
        (length, "tokens a pass of the verifier"),
        (cost, "ms of drafting a token"),
        (speed, "speed, the verifier alone = 1"),
    ):
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dfe3e8", linewidth=0.8)
        axes.set_axisbelow(True)
    length.set_yticks(rows, names)
    lengths = [found[name]["acceptance_length"] for name in names]
    length.barh(rows, [one - 1 for one in lengths], left=1, color=EMBEDDED, height=0.6)
    for row, one in zip(rows, lengths, strict=True):
        length.annotate(f"{one:.2f}", (one, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
    length.set_xlim(1, 1 + 1.2 * (max(lengths) - 1))
    cost.barh(rows, [found[name]["drafting_ms"] for name in names], color=QUIET, height=0.6)
    speed.axvline(1, color=QUIET, linewidth=1)
    speed.plot([found[name]["speed_ratio"] for name in names], rows, "o", color=EMBEDDED, label="embedded")
    served = [
        (found[name]["vllm_speed_ratio"], row) for row, name in enumerate(names) if "vllm_speed_ratio" in found[name]
    ]
    if served:
        speed.plot(*zip(*served, strict=True), "D", color=VLLM, label="vLLM")
        figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=8.5)
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
