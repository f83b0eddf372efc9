"""Charts, the pipeline's picture and the coloured recipe."""

import re

import pytest

from speculators.reporting.benchmark_charts import LoadPoint, Variant, benchmark_chart, load_charts
from speculators.reporting.charts import VARIABLES, Curves, acceptance_chart, training_charts
from speculators.reporting.highlight import highlight
from speculators.reporting.picture import picture, spoken


def test_charts_take_every_colour_and_the_font_from_the_page():
    rising = [(1.0, 1.2), (2.0, 1.4)]
    charts = [
        *training_charts(Curves(loss=rising, holdout_loss=rising, accuracy={"1": [(1.0, 0.4)]}, walk=rising)),
        acceptance_chart({"temperature 0": [0.4, 0.3], "temperature 1": [0.3]}, "holdout"),
        benchmark_chart([Variant("dense", 40.0, {"p50": 24.0, "p95": 30.0})], "1 stream"),
        *load_charts({name: loads((1, 4.0, 1.5), (2, 5.0, 1.4)) for name in "abcdef"}, "streams at once"),
    ]
    names = [
        "loss",
        "accuracy",
        "walk",
        "acceptance",
        "benchmark",
        "load-throughput",
        "load-latency",
        "load-acceptance",
    ]
    assert [chart.name for chart in charts] == names
    for chart in charts:
        painted = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{3,6})", chart.svg))
        assert painted == set(), chart.name
        assert set(re.findall(r"var\((--[a-z-]+)\)", chart.svg)) <= {*VARIABLES.values(), "--sans"}
        assert "DejaVu" not in chart.svg
        assert "http" not in chart.svg
        assert f'id="{chart.name}-' in chart.svg


def test_a_chart_says_its_figures_in_words():
    chart = acceptance_chart({"temperature 0": [0.436, 0.318]}, "held-out prompts")
    assert chart.words == "Conditional acceptance on held-out prompts: temperature 0: position 1 44%, position 2 32%."


def loads(*points: tuple[float, float, float | None]) -> list[LoadPoint]:
    return [LoadPoint(at, rate, 20.0, length) for at, rate, length in points]


def test_every_point_of_every_variant_stands_in_the_charts_words():
    variants = {"dense": loads((4, 90.0, None), (1, 40.0, None)), "int8": loads((1, 60.0, 1.5), (4, 99.5, 1.25))}
    charts = load_charts(variants, "streams at once")
    assert [chart.words for chart in charts] == [
        "Output tokens/s by streams at once: dense 40.00 at 1, 90.00 at 4; int8 60.00 at 1, 99.50 at 4.",
        "Milliseconds per token by streams at once: dense 20.00 at 1, 20.00 at 4; int8 20.00 at 1, 20.00 at 4.",
        "Acceptance length by streams at once: int8 1.50 at 1, 1.25 at 4.",
    ]
    assert [chart.name for chart in charts] == ["load-throughput", "load-latency", "load-acceptance"]
    assert len({chart.png for chart in charts}) == 3


def test_one_point_makes_no_curve_and_no_draft_no_acceptance():
    assert load_charts({"dense": loads((1, 40.0, None))}, "streams at once") == ()
    names = [chart.name for chart in load_charts({"dense": loads((1, 4.0, None), (2, 5.0, None))}, "streams at once")]
    assert names == ["load-throughput", "load-latency"]


def test_many_variants_are_all_named_beside_their_bars():
    names = ["dense", "speculator", "fp8-dynamic", "int8-dense"]
    chart = benchmark_chart([Variant(name, 40.0, {"p50": 24.0, "p95": 30.0}) for name in names], "1 stream")
    assert all(chart.svg.count(f">{name}</text>") == 1 for name in names)


def test_curves_without_points_are_left_out():
    assert training_charts(Curves()) == ()
    assert [chart.name for chart in training_charts(Curves(walk=[(1.0, 1.0)]))] == ["walk"]


def test_what_is_compared_stands_side_by_side():
    inputs = {"a": (), "b": ("a",), "slow": ("b",), "quick": ("a",), "end": ("slow", "quick")}
    drawn = picture(inputs, {name: {"status": "finished", "seconds": 1.0} for name in inputs})
    places = dict(re.findall(r'<rect x="([\d.]+)" y="[\d.]+"[^>]*/><text class="name"[^>]*>(\w+)', drawn))
    column = {name: float(x) for x, name in places.items()}
    assert column["end"] > max(float(x) for x, name in places.items() if name != "end")
    assert drawn.count('class="edge"') == 5


def test_marks_show_what_ran_and_what_was_cached():
    steps = {
        "one": {"status": "cached", "seconds": 0.0, "seconds_when_made": 90.0},
        "two": {"status": "finished", "seconds": 3.25},
        "three": {"status": "pending", "seconds": None},
        "four-variant": {"status": "failed", "seconds": None},
    }
    drawn = picture({"one": (), "two": ("one",), "three": ("two", "gone"), "four-variant": ("three",)}, steps)
    for note in ("cached · 1 min 30 s", "ran · 3.2 s", "not run", "failed"):
        assert f">{note}</text>" in drawn
    assert picture({}, {}) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "–"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (7800, "2 h 10 min")],
)
def test_seconds_are_spoken_as_people_say_them(seconds, words):
    assert spoken(seconds) == words


def test_a_recipe_is_coloured_and_keeps_every_character():
    recipe = 'a: 1e-4  # <b>\nmodel: wheel://x==0.1.2/y.gguf\nlist: [0.0, null, "a # b"]\n'
    html = str(highlight(recipe))
    assert '<span class="y-number">1e-4</span>' in html
    assert '<span class="y-comment"># &lt;b&gt;</span>' in html
    assert '<span class="y-constant">null</span>' in html
    assert "wheel://x==0.1.2/y.gguf" in html
    assert re.sub(r"<[^>]+>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"') == recipe[:-1]
