"""The tiny recipe with one word changed: from nothing to a report without stored states, and after a kill just so."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

ONLINE = ("--set", "data.hidden_states.mode=online")
LONG = [
    *("--set", "train.epochs=6", "--set", "train.tokens_per_step=512", "--set", "train.checkpoint.every=1"),
    *("--set", "data.hidden_states.buffer_tokens=1024"),
]


def test_a_recipe_runs_without_ever_storing_states(speculators, results, steps, tmp_path):
    run = speculators("run", "tiny", *ONLINE, folder=tmp_path)
    assert run.returncode == 0, run.stdout
    found = results(tmp_path, "tiny")
    assert "hidden_states" not in found["steps"]
    expected = [name for name in steps if name != "hidden_states"]
    assert [name for name in expected if found["steps"][name]["status"] != "finished"] == []
    assert found["acceptance"]["holdout"]["acceptance_length"] >= 1
    assert 0 < found["training"]["data_wait"] < 1
    kept = [path for path in tmp_path.rglob("*") if "states" in path.name or path.name in {"held-out", ".engine-0"}]
    assert kept == []
    plan = speculators("plan", "tiny", *ONLINE, "--check", folder=tmp_path)
    assert plan.returncode == 0, plan.stdout
    assert "hidden_states" not in plan.stdout


@pytest.mark.timeout(300)
def test_a_kill_in_the_middle_of_online_training_changes_nothing(start, speculators, results, tmp_path):
    until = ("--until", "checkpoint")
    calm, store = tmp_path / "calm", tmp_path / "store"
    calm.mkdir()
    whole = speculators("run", "tiny", *ONLINE, *LONG, *until, folder=calm)
    assert whole.returncode == 0, whole.stdout

    run = start("run", "tiny", *ONLINE, *LONG, *until, "--json", folder=tmp_path, store=store)
    worker, told = 0, set()
    for line in run.stdout:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("step") == "train" and event["event"] == "step_started":
            worker = event["pid"]
        if event.get("step") == "train" and event["event"] == "progress" and event["unit"] == "tokens":
            told.add(event["done"])
        if len(told) == 2:  # the first step is saved before the second is told
            break
    os.kill(worker, signal.SIGKILL)
    run.communicate()
    assert run.returncode == 1
    assert not psutil.pid_exists(worker)
    assert list((store / "artifacts").glob("train-*")) == []

    again = speculators("run", "tiny", *ONLINE, *LONG, *until, folder=tmp_path, store=store)
    assert again.returncode == 0, again.stdout
    assert "going on after step" in again.stdout
    draft = "runs/tiny/latest/steps/checkpoint/model.safetensors"
    assert (tmp_path / draft).read_bytes() == (calm / draft).read_bytes()
    assert results(tmp_path, "tiny")["training"]["best"] == results(calm, "tiny")["training"]["best"]
    assert list(store.rglob("held-out")) == []
