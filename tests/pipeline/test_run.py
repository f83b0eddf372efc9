"""Runs of the toy graph: what runs, what is cached, and what failures, gates and interruptions lead to."""

import json
import os

import pytest


def test_everything_runs_once_and_the_second_run_finds_all_of_it(toy):
    first, second = toy.run(), toy.run()
    assert first.outcome.exit_code == 0
    assert set(first.did.values()) == {"step_finished"}
    assert second.outcome.exit_code == 0
    assert set(second.did.values()) == {"step_cached"}
    assert (second.artifact("total") / "total.txt").read_text() == "6"
    assert not list((second.folder / "logs").iterdir())


def test_the_run_folder_has_all_that_the_page_promises(toy):
    run = toy.run()
    assert {path.name for path in run.folder.iterdir()} >= {
        "recipe.yaml", "plan.json", "environment.json", "events.jsonl", "logs", "steps", "results.json", "report.html",
    }  # fmt: skip
    assert (run.folder.parent / "latest").resolve() == run.folder.resolve()
    assert {path.name for path in (run.folder / "steps").iterdir()} == {"numbers", "shards", "words", "total"}
    assert "numbers were here" in run.log("numbers")


def test_every_event_is_json_with_time_run_and_name_and_the_listener_hears_all_of_them(toy):
    run = toy.run()
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert lines == run.events
    assert all({"t", "run", "event"} <= line.keys() for line in lines)
    names = [line["event"] for line in lines]
    assert names[:2] == ["run_started", "planned"]
    assert names[-1] == "run_finished"
    metric = next(line for line in lines if line["event"] == "metric")
    assert metric["values"] == {"total": 6.0, "odd": None}


def test_a_report_of_the_very_same_things_is_copied_and_of_new_ones_is_drawn(toy):
    first = toy.run()
    page = (first.folder / "report.html").read_text()
    assert toy.run().did["report"] == "step_cached"
    again = toy.run({"numbers": {"count": 2}})
    assert again.did["report"] == "step_finished"
    third = toy.run()  # the previous run was about something else
    assert third.did["report"] == "step_finished"
    assert (third.folder / "report.html").read_text() == page


def test_a_failing_step_stops_what_needs_it_and_nothing_else(toy):
    run = toy.run({"shards": {"fail": "error"}})
    assert run.outcome.exit_code == 1
    assert run.did == {
        "numbers": "step_finished", "words": "step_finished", "shards": "step_failed", "report": "step_finished",
    }  # fmt: skip
    failure = run.outcome.failures[0]
    assert failure.step == "shards"
    assert "ValueError: the shards did not come out" in str(failure)
    assert str(run.folder / "logs" / "shards.log") in str(failure)
    failed = next(event for event in run.events if event["event"] == "step_failed")
    assert failed["error"] == "ValueError: the shards did not come out"
    assert run.events[-1]["status"] == "failed"


def test_a_failed_step_continues_from_what_it_had_finished(toy):
    toy.run({"shards": {"fail": "error"}})
    run = toy.run()
    assert run.outcome.exit_code == 0
    assert "made shard" not in run.log("shards")


@pytest.mark.parametrize(
    ("fail", "exit_code", "words"),
    [
        ("machine", 5, "no engine here"),
        ("undeclared", 1, "numbers is not among the declared reads"),
        ("link", 1, "link is not a plain file"),
        ("nothing", 1, "without writing a file"),
    ],
)
def test_what_a_step_must_not_do_fails_with_its_own_words_and_publishes_nothing(toy, fail, exit_code, words):
    run = toy.run({"shards": {"fail": fail}})
    assert run.outcome.exit_code == exit_code
    assert words in str(run.outcome.failures[0])
    assert not list(toy.store.artifacts.glob("shards-*"))


def test_a_missed_gate_is_told_after_the_report(toy):
    run = toy.run({"gate": 100})
    assert run.outcome.exit_code == 3
    assert "total >= 100 (found 6)" in str(run.outcome.failures[0])
    names = [event["event"] for event in run.events]
    assert names.index("gate") < len(names) - 1 - names[::-1].index("step_finished")
    assert (run.folder / "report.html").is_file()
    assert toy.run({"gate": 6}).outcome.exit_code == 0


def test_a_forced_step_runs_again_and_so_does_what_was_made_from_it(toy):
    toy.run({"total": {"noise": True}})
    run = toy.run({"total": {"noise": True}}, force=("shards",))
    assert run.did["numbers"] == "step_cached"
    assert run.did["shards"] == "step_finished"
    assert run.did["words"] == "step_cached"
    # the shards came out with the same bytes, so what was made from them is still good
    assert run.did["total"] == "step_cached"
    forced = toy.run({"total": {"noise": True}}, force=("total",))
    assert forced.did["total"] == "step_finished"
    assert forced.did["report"] == "step_finished"


def test_what_was_made_from_a_rebuilt_input_with_other_bytes_runs_again(toy, monkeypatch, toy_graph):
    toy.run()
    plan = toy.plan(force=("shards",))
    assert plan["total"].why.text == "shards is made again"
    (numbers,) = toy.store.history("shards")
    fake = json.loads((numbers.path / "artifact.json").read_text())
    fake["instance"] = "0" * 32  # as if a step that is not deterministic had run again
    (numbers.path / "artifact.json").chmod(0o644)
    (numbers.path / "artifact.json").write_text(json.dumps(fake))
    assert toy.plan()["total"].why.text == "shards was rebuilt"
    run = toy.run()
    assert run.did["shards"] == "step_cached"
    assert run.did["total"] == "step_finished"
    assert toy.run().did["total"] == "step_cached"


def test_an_external_file_that_changes_while_a_step_runs_fails_it_and_publishes_nothing(
    toy, barrier, tmp_path, in_thread
):
    file = tmp_path / "words.txt"
    file.write_text("old")
    stop = barrier("words")
    running = in_thread(toy.run, {"words": {"file": str(file)}})
    stop.reached()
    file.write_text("new and longer")
    stop.open()
    run = running.join()
    assert run.outcome.exit_code == 1
    assert "file changed while the step was running" in str(run.outcome.failures[0])
    assert not list(toy.store.artifacts.glob("words-*"))
    stop.remove()
    assert toy.run({"words": {"file": str(file)}}).did["words"] == "step_finished"


def test_a_step_that_releases_an_input_lets_go_of_it_and_the_next_run_does_not_miss_it(toy, toy_graph, monkeypatch):
    from dataclasses import replace

    steps = tuple(replace(s, releases=("shards",)) if s.name == "total" else s for s in toy_graph.STEPS)
    monkeypatch.setattr(toy_graph, "STEPS", steps)
    run = toy.run()
    assert not list(toy.store.artifacts.glob("shards-*"))
    assert not os.path.lexists(run.folder / "steps" / "shards")
    assert {planned.name: planned.state for planned in toy.plan().steps} == {
        "numbers": "cached", "shards": "skipped", "words": "cached", "total": "cached", "report": "run",
    }  # fmt: skip


def test_a_runner_whose_listener_fails_ends_its_steps(toy, barrier):
    from speculators.pipeline.executors.local import LocalExecutor
    from speculators.pipeline.run import run_plan

    barrier("shard-0")  # nobody ever opens it: the step would run for ever
    plan, folder = toy.start({})

    def deaf(event):
        if event.get("step") == "shards":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_plan(plan, folder, LocalExecutor(grace=0.5), listener=deaf)
    assert not list(toy.store.artifacts.glob("shards-*"))


def test_only_the_recipe_s_check_can_stop_a_run_before_the_next_step(toy, toy_graph, monkeypatch):
    from dataclasses import replace

    from speculators.errors import Place, Problem, RecipeError

    def check(artifacts):
        if "numbers" in artifacts:
            raise RecipeError((Problem(Place("toy.yaml", 1, 1), "`shards.factor` does not fit the numbers"),))
        return False

    real = toy_graph.reassemble
    monkeypatch.setattr(toy_graph, "reassemble", lambda data: replace(real(data), check=check))
    run = toy.run()
    assert run.outcome.exit_code == 2
    assert "shards" not in run.did
    assert "total" not in run.did
