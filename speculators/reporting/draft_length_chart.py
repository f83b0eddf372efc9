"""The chart of `speculative_tokens: auto`: how fast the server was with each number of drafted tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speculators.reporting.charts import DENSE, DRAFT, INK, Chart, drawn

Tried = Mapping[str, Any]
"""One number of speculative tokens, as in speculative_tokens.json."""


def draft_length_chart(curve: Sequence[Tried], best: int, dense: float | None) -> Chart:
    """Tokens per second and acceptance length at the first point by number; `dense` is the speed without a draft."""
    figures = ", ".join(f"{tried['speculative_tokens']}: {tried['output_tokens_per_second']:.1f}" for tried in curve)
    words = f"Output tokens per second by number of speculative tokens: {figures}; {best} is the best."
    return drawn(
        "draft-length",
        "Speculative tokens",
        words,
        (5.4, 2.9),
        lambda axes: _draw(axes, curve, best, dense),
        columns=2,
    )


def _draw(axes: list[Any], curve: Sequence[Tried], best: int, dense: float | None) -> None:
    numbers = [tried["speculative_tokens"] for tried in curve]
    rates = [tried["output_tokens_per_second"] for tried in curve]
    bars = axes[0].bar(numbers, rates, width=0.66, color=[DRAFT if number == best else DENSE for number in numbers])
    axes[0].bar_label(bars, labels=[f"{rate:.1f}" for rate in rates], padding=3, fontsize=9, color=INK)
    if dense is not None:
        axes[0].axhline(dense, color=INK, linestyle="--", linewidth=1.1)
    axes[0].set_ylim(0, 1.18 * max([*rates, dense or 0.0]))
    axes[0].set_yticks([])
    lengths = [tried["levels"][0]["acceptance_length"] for tried in curve]
    axes[1].plot(numbers, lengths, color=DRAFT, marker="o", markersize=4.5)
    axes[1].grid(axis="y")
    for axis, title in zip(axes, ("Output tokens/s", "Acceptance length"), strict=True):
        axis.set_xticks(numbers)
        axis.set_xlabel("speculative tokens")
        axis.set_title(title)
    if dense is not None:
        axes[0].set_xlabel("speculative tokens (dashed: none)")
