"""results.json: the documented fields, from whole and from broken runs."""

import json
from pathlib import Path

import pytest

from speculators.reporting.results import collect, seconds_between, speedup, write_results


def test_a_finished_run_has_every_documented_field(make_run):
    run = make_run()
    results = collect(run)
    assert results["results"] == 1
    assert results["name"] == "quickstart"
    assert results["steps"]["train"] == {
        "status": "finished",
        "seconds": 268.9,
        "artifact": "train",
        "seconds_when_made": 268.9,
    }
    assert results["steps"]["verifier"]["status"] == "cached"
    assert list(results["steps"])[:3] == ["verifier", "prompts", "answers"]
    assert Path(results["checkpoint"]) == (run / "steps" / "checkpoint").resolve()
    assert results["acceptance"]["holdout"]["acceptance_length"] == 1.6234
    assert results["acceptance"]["holdout"]["positions"] == [0.436, 0.318, 0.262]
    assert results["acceptance"]["holdout"]["temperatures"]["T1.0"]["acceptance_length"] == 1.4171
    assert results["benchmark"]["dense"]["output_tokens_per_second"] == 39.84
    assert results["benchmark"]["speculator"]["inter_token_latency_ms"]["p50"] == 20.2
    assert results["benchmark"]["dense"]["time_to_first_token_ms"]["p95"] == 91.2
    assert [level["streams"] for level in results["benchmark"]["dense"]["levels"]] == [1, 4]
    assert results["speedup"] == pytest.approx(46.91 / 39.84)
    assert results["training"]["best"]["walk_estimate"] == 1.5338


def test_every_variant_of_the_plan_has_its_figures_and_every_point_says_what_it_was(make_run):
    benchmark = collect(make_run(profile="sweep", others={"int8": 55.5}))["benchmark"]
    assert list(benchmark) == ["dense", "speculator", "int8"]
    assert benchmark["int8"]["output_tokens_per_second"] == 55.5
    assert benchmark["int8"]["verifier"] == {"source": "org/verifier-int8", "digest": "hub:cd"}
    assert [(one["profile"], one["streams"], one["rate"] is None) for one in benchmark["int8"]["levels"]] == [
        ("synchronous", 1, True),
        ("throughput", None, True),
        ("constant", None, False),
    ]


def test_every_field_is_explained_in_the_documentation(make_run):
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    results = collect(make_run())
    fields = {*results, *results["steps"]["train"], *results["acceptance"]["holdout"], *results["benchmark"]["dense"]}
    assert {field for field in fields if f"`{field}`" not in page} == set()


def test_results_are_plain_json_and_written_whole(make_run):
    run = make_run()
    place = write_results(run)
    assert place == run / "results.json"
    assert json.loads(place.read_text(encoding="utf-8")) == collect(run)
    assert [path.name for path in run.glob("results.json*")] == ["results.json"]


def test_what_was_not_measured_is_absent_and_never_zero(make_run):
    results = collect(make_run(without=("acceptance", "benchmark-dense", "checkpoint")))
    assert results["acceptance"] == {}
    assert results["checkpoint"] is None
    assert "dense" not in results["benchmark"]
    assert results["speedup"] is None
    assert results["steps"]["acceptance"] == {"status": "pending", "seconds": None, "artifact": None}


def test_a_step_that_was_running_when_the_run_ended_counts_as_interrupted(make_run):
    run = make_run()
    with (run / "events.jsonl").open("a", encoding="utf-8") as events:
        events.write('{"t":"2026-12-01T14:30:00.000Z","event":"run_finished","status":"interrupted"}\n')
    results = collect(run)
    assert results["steps"]["report"]["status"] == "interrupted"
    assert results["status"] == "interrupted"


def test_a_line_cut_short_by_a_crash_is_left_out(make_run):
    run = make_run()
    before = collect(run)
    with (run / "events.jsonl").open("a", encoding="utf-8") as events:
        events.write('{"t":"2026-12-01T14:3')
    assert collect(run) == before


def test_a_speed_up_needs_both_variants():
    assert speedup({"dense": {"output_tokens_per_second": 40.0}}) is None
    assert speedup({"dense": {"output_tokens_per_second": 0}, "speculator": {"output_tokens_per_second": 1.0}}) is None


def test_seconds_between_needs_both_moments():
    assert seconds_between("2026-12-01T14:00:00.000Z", "2026-12-01T14:01:30.500Z") == 90.5
    assert seconds_between(None, "2026-12-01T14:01:30Z") is None


def test_a_step_that_nothing_needed_is_skipped_and_not_pending(make_run):
    run = make_run(without=("hidden_states",))
    plan = json.loads((run / "plan.json").read_text())
    next(step for step in plan["steps"] if step["name"] == "hidden_states")["state"] = "skipped"
    (run / "plan.json").write_text(json.dumps(plan))
    assert collect(run)["steps"]["hidden_states"]["status"] == "skipped"
