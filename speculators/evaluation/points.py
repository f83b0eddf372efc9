"""The points of a load profile, each measured by a run of its own.

GuideLLM has a sweep too, but within one run, where the server's counters cannot be told apart point by point; ours asks
for the same loads one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from speculators.recipe.shapes.eval import Concurrent, Constant, Profile, Sweep, Synchronous

Figures = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One load to put on a server: so many `streams` at once, or requests at a `rate` per second, or neither."""

    profile: Literal["synchronous", "concurrent", "throughput", "constant"]
    streams: int | None = None
    rate: float | None = None


SYNCHRONOUS = Point("synchronous", streams=1)
THROUGHPUT = Point("throughput")


def measure_points(profile: Profile, measure: Callable[[Point], Figures]) -> list[Figures]:
    """Measure every point of a profile, in order; `measure` gives the figures of one.

    A sweep needs what its first two points measured: `requests_per_second`.
    """
    if isinstance(profile, Sweep):
        slow, fast = measure(SYNCHRONOUS), measure(THROUGHPUT)
        rates = rates_between(slow["requests_per_second"], fast["requests_per_second"], profile.points - 2)
        return [slow, fast, *(measure(Point("constant", rate=rate)) for rate in rates)]
    return [measure(point) for point in fixed_points(profile)]


def fixed_points(profile: Profile) -> list[Point]:
    """The points that are known before anything is measured."""
    if isinstance(profile, Concurrent):
        return [Point("concurrent", streams=streams) for streams in profile.levels]
    if isinstance(profile, Constant):
        return [Point("constant", rate=rate) for rate in profile.rates]
    if isinstance(profile, Synchronous):
        return [SYNCHRONOUS]
    return [SYNCHRONOUS, THROUGHPUT] if isinstance(profile, Sweep) else [THROUGHPUT]


def number_of_points(profile: Profile) -> int:
    """How many points a profile has."""
    return profile.points if isinstance(profile, Sweep) else len(fixed_points(profile))


def rates_between(one: float, other: float, count: int) -> list[float]:
    """`count` rates evenly spaced between two, ascending, without the two themselves."""
    low, high = sorted((one, other))
    return [low + (high - low) * (number + 1) / (count + 1) for number in range(count)]
