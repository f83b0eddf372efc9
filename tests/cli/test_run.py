"""`speculators run`: exit statuses, the streams, and what people are shown."""

import json
from pathlib import Path

import pytest


def test_a_run_ends_with_zero_and_says_where_everything_is(toy_cli):
    run = toy_cli("run", "toy")
    assert run.code == 0, run.err
    assert "shards: finished in" in run.out
    assert "report              runs/toy/" in run.out
    again = toy_cli("run", "toy")
    assert "total: cached" in again.out
    assert "finished in" not in again.out


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("shards.fail=error", 1, "the shards did not come out"),
        ("gate=100", 3, "gate missed: total >= 100 (found 6)"),
        ("shards.fail=machine", 5, "no engine here"),
        ("disk=1000000000000000000", 5, "of disk"),
    ],
)
def test_every_end_has_its_exit_status_and_its_words(toy_cli, change, code, words):
    run = toy_cli("run", "toy", "--set", change)
    assert run.code == code
    assert words in run.err


def test_a_wrong_step_is_bad_usage(toy_cli):
    assert toy_cli("run", "toy", "--until", "shard").code == 2


def test_yes_runs_although_the_estimate_says_no(toy_cli):
    run = toy_cli("run", "toy", "--set", "disk=1000000000000000000", "--yes")
    assert run.code == 0
    assert "warning: this run needs about" in run.err


def test_json_writes_exactly_the_events_to_standard_output(toy_cli):
    run = toy_cli("run", "toy", "--json")
    events = [json.loads(line) for line in run.out.splitlines()]
    (file,) = Path("runs/toy").glob("20*/events.jsonl")
    assert events == [json.loads(line) for line in file.read_text().splitlines()]
    assert events[-1]["event"] == "run_finished"
    assert "total: finished" in run.err


def test_only_until_from_and_force_reach_the_plan(toy_cli):
    assert "shards" not in toy_cli("run", "toy", "--until", "numbers").out
    assert "shards: finished" in toy_cli("run", "toy", "--only", "shards").out
    assert "shards: finished" in toy_cli("run", "toy", "--force", "shards").out
    last = toy_cli("run", "toy", "--from", "shards", "--until", "shards", "--set", "shards.factor=9")
    assert "shards: finished" in last.out
    assert "total" not in last.out


def test_status_tells_how_a_run_ended(toy_cli):
    toy_cli("run", "toy", "--set", "shards.fail=error")
    status = toy_cli("status")
    assert "failed" in status.out
    assert "the shards did not come out" in status.out
    told = json.loads(toy_cli("status", "toy", "--json").out)
    assert told["status"] == "failed"
    assert told["steps"]["shards"]["status"] == "failed"
    assert told["steps"]["total"]["status"] == "pending"
    assert toy_cli("status", "nothing").code == 2


def test_status_sees_that_a_run_was_killed(toy_cli):
    toy_cli("run", "toy", "--until", "numbers")
    (file,) = Path("runs/toy").glob("20*/events.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line for line in lines if line["event"] not in {"step_finished", "run_finished"}]
    lines[0]["pid"] = 2**22 + 1  # no process has this number
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = json.loads(toy_cli("status", "--json").out)
    assert told["status"] == "killed"
    assert told["steps"]["numbers"]["status"] == "stopped"


def test_a_stop_waits_as_long_as_grace_says(toy_cli, monkeypatch):
    from speculators.pipeline.executors import local

    asked = []

    class Noting(local.LocalExecutor):
        def __init__(self, grace):
            asked.append(grace)
            super().__init__(grace)

    monkeypatch.setattr(local, "LocalExecutor", Noting)
    assert toy_cli("run", "toy", "--grace", "150").code == 0
    assert toy_cli("run", "toy").code == 0
    assert asked == [150.0, 30.0]
    assert toy_cli("run", "toy", "--grace", "-1").code == 2
