"""How many processes train comes from the command line alone, and reaches the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click import BadParameter
from click.testing import CliRunner

from speculators.cli import cli
from speculators.errors import UsageError


def plan(store: Path, *extra: str):
    return CliRunner().invoke(cli, ["plan", "tiny", "--json", "--store", str(store), *extra], standalone_mode=False)


def test_the_number_stands_in_the_plan_and_in_no_key(tmp_path: Path) -> None:
    plain, more = (json.loads(plan(tmp_path, *extra).stdout) for extra in ([], ["--processes", "4"]))
    assert (plain["processes"], more["processes"]) == (1, 4)
    assert [step["key"] for step in more["steps"]] == [step["key"] for step in plain["steps"]]


@pytest.mark.parametrize(("gpus", "visible", "expected"), [(0, None, 1), (4, None, 4), (4, "2,3", 2), (4, "", 1)])
def test_auto_is_one_for_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None, expected: int
) -> None:
    monkeypatch.setattr("speculators.pipeline.machine.gpus", lambda: ("H100",) * gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert json.loads(plan(tmp_path, "--processes", "auto").stdout)["processes"] == expected


@pytest.mark.parametrize("wrong", ["0", "-1", "two"])
def test_nonsense_is_refused(tmp_path: Path, wrong: str) -> None:
    result = plan(tmp_path, "--processes", wrong)
    assert isinstance(result.exception, BadParameter)
    assert "neither a number from 1 nor auto" in str(result.exception)


def test_states_that_are_made_meanwhile_are_for_one_process(tmp_path: Path) -> None:
    online = ("--set", "data.hidden_states.mode=online")
    result = plan(tmp_path, *online, "--processes", "2")
    assert isinstance(result.exception, UsageError)
    assert "needs stored hidden states" in str(result.exception)
    assert plan(tmp_path, *online).exit_code == 0


NODES = ("--nodes", "2", "--rendezvous", "node-0:29500")


def test_nodes_and_sharding_stand_in_the_plan_and_in_no_key(tmp_path: Path) -> None:
    plain = json.loads(plan(tmp_path).stdout)
    more = json.loads(plan(tmp_path, *NODES, "--node-rank", "1", "--sharding", "full").stdout)
    assert plain["nodes"] == {"count": 1, "number": 0, "rendezvous": ""}
    assert more["nodes"] == {"count": 2, "number": 1, "rendezvous": "node-0:29500"}
    assert (plain["sharding"], more["sharding"]) == ("none", "full")
    keys = {step["name"]: step["key"] for step in plain["steps"]}
    assert all(step["key"] == keys[step["name"]] for step in more["steps"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "2"], "--nodes 2 needs --rendezvous HOST:PORT"),
        (["--nodes", "2", "--rendezvous", "node-0"], "found 'node-0'"),
        ([*NODES, "--node-rank", "2"], "--node-rank 2: with --nodes 2 it is from 0 to 1"),
        (["--sharding", "full", "--set", "train.optimizer.type=adamw8bit"], "cannot divide the moments of adamw8bit"),
        (["--sharding", "full", "--set", "data.hidden_states.mode=online"], "needs stored hidden states"),
    ],
)
def test_what_cannot_train_together_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    result = plan(tmp_path, *options)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_other_nodes_are_there_to_train_alone(tmp_path: Path) -> None:
    steps = {
        step["name"]: step["state"] for step in json.loads(plan(tmp_path, *NODES, "--node-rank", "1").stdout)["steps"]
    }
    assert steps["train"] == "run"
    assert steps["checkpoint"] == steps["acceptance"] == "skipped"
