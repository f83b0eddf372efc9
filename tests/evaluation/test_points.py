"""The points of a profile: each measured once, in order, and a sweep's between what its first two measured."""

from __future__ import annotations

import pytest

from speculators.evaluation.points import SYNCHRONOUS, THROUGHPUT, Point, measure_points, number_of_points
from speculators.recipe.shapes.eval import Concurrent, Constant, Sweep, Synchronous, Throughput


def rate_of(point: Point) -> float:
    return {"synchronous": 1.0, "throughput": 5.0}.get(point.profile, point.rate or 0.0)


@pytest.mark.parametrize(
    ("profile", "points"),
    [
        (Synchronous(), [SYNCHRONOUS]),
        (Throughput(), [THROUGHPUT]),
        (Concurrent(levels=(4, 1)), [Point("concurrent", streams=4), Point("concurrent", streams=1)]),
        (Constant(rates=(0.5, 2)), [Point("constant", rate=0.5), Point("constant", rate=2)]),
        (Sweep(points=2), [SYNCHRONOUS, THROUGHPUT]),
        (Sweep(points=5), [SYNCHRONOUS, THROUGHPUT, *(Point("constant", rate=rate) for rate in (2.0, 3.0, 4.0))]),
    ],
)
def test_a_profile_is_measured_point_by_point(profile, points):
    measured = measure_points(profile, lambda point: {"point": point, "requests_per_second": rate_of(point)})
    assert [figures["point"] for figures in measured] == points
    assert number_of_points(profile) == len(points)


def test_a_server_that_is_no_faster_under_load_is_swept_all_the_same():
    def measure(point):
        return {"rate": point.rate, "requests_per_second": 3.0 if point == SYNCHRONOUS else 1.0}

    assert [figures["rate"] for figures in measure_points(Sweep(points=3), measure)] == [None, None, 2.0]
