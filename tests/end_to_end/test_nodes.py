"""Two machines train together, as two commands on this one: killed on one, gone on with, equal to one process."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

SETS = ("--set", "train.epochs=2", "--set", "train.tokens_per_step=512", "--set", "train.checkpoint.every=1")
ASKED = ("run", "tiny", *SETS, "--set", "train.precision=float32", "--until", "train")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def on_two_nodes(start: Any, folder: Path, *more: str) -> list[Any]:
    """The command on node 0 and on node 1, each with a folder for runs of its own and the same store."""
    rendezvous = f"127.0.0.1:{free_port()}"
    asked = (*ASKED, "--nodes", "2", "--rendezvous", rendezvous, "--json", *more)
    return [start(*asked, "--node-rank", str(node), "--runs", f"runs-{node}", folder=folder) for node in (0, 1)]


def wait_for_a_step(run: Any) -> None:
    """Until one is done and saved, which it is before the second is told."""
    told = set()
    for line in run.stdout:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("step") == "train" and event["event"] == "progress":
            told.add(event["done"])
        if len(told) == 2:
            return
    raise AssertionError("the training never began")


def losses(runs: Path) -> list[float]:
    lines = (runs / "tiny/latest/steps/train/metrics.jsonl").read_text().splitlines()
    return [value["loss"] for value in map(json.loads, lines) if "loss" in value]


@pytest.mark.timeout(600)
def test_a_node_that_dies_ends_the_other_and_both_go_on_divided(start, speculators, tmp_path):
    """What two nodes had saved with whole drafts is gone on with by two that divide it, and one process agrees."""
    assert speculators(*ASKED[:-1], "hidden_states", "--until", "vocabulary", folder=tmp_path).returncode == 0
    first, second = on_two_nodes(start, tmp_path)
    wait_for_a_step(first)
    for one in psutil.Process(second.pid).children(recursive=True):
        if "speculators.training.rank" in one.cmdline():
            one.kill()
    printed = [run.communicate()[0] for run in (first, second)]
    assert [first.returncode, second.returncode] == [1, 1]
    assert "another process of this training has ended" in printed[0]
    assert "process 1 of the 2 that train ended by SIGKILL" in printed[1]

    runs = on_two_nodes(start, tmp_path, "--sharding", "full")
    printed = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    assert "going on after step" in printed[0]
    assert "node 1 has done its part" in printed[1]
    found = losses(tmp_path / "runs-0")
    assert found == losses(tmp_path / "runs-1")  # one artifact for both
    assert speculators(*ASKED, "--force", "train", folder=tmp_path).returncode == 0
    assert found == pytest.approx(losses(tmp_path / "runs"), rel=1e-3)
