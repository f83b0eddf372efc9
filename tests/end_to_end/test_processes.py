"""Training in several processes from the command line: killed, gone on with in others, and the same in the end."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

SETS = ("--set", "train.epochs=4", "--set", "train.tokens_per_step=512", "--set", "train.checkpoint.every=1")
ASKED = ("run", "tiny", *SETS, "--until", "train")


def ranks_of(worker: int) -> list[psutil.Process]:
    """The training's processes, in the order of their numbers."""
    children = [one for one in psutil.Process(worker).children() if "speculators.training.rank" in one.cmdline()]
    return sorted(children, key=lambda one: int(one.cmdline()[-2]))


def ranks_in_training(run: Any) -> tuple[int, list[psutil.Process]]:
    """The worker and the training's processes, once a step was done."""
    worker = 0
    for line in run.stdout:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("step") == "train" and event["event"] == "step_started":
            worker = event["pid"]
        if event.get("step") == "train" and event["event"] == "progress":
            return worker, ranks_of(worker)
    raise AssertionError("the training never began")


def ended(ranks: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(ranks, timeout=15)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def losses(folder: Path) -> list[float]:
    lines = (folder / "runs/tiny/latest/steps/train/metrics.jsonl").read_text().splitlines()
    return [value["loss"] for value in map(json.loads, lines) if "loss" in value]


@pytest.mark.timeout(600)
def test_whatever_ends_a_process_leaves_none_and_any_number_goes_on(start, speculators, tmp_path):
    """One process is killed, then the worker, then the whole run is interrupted; one process alone does the rest."""
    run = start(*ASKED, "--processes", "2", "--json", folder=tmp_path)
    _, ranks = ranks_in_training(run)
    assert len(ranks) == 2
    ranks[1].kill()
    printed, _ = run.communicate()
    assert run.returncode == 1
    assert "process 1 of the 2 that train ended by SIGKILL" in printed
    assert ended(ranks)

    run = start(*ASKED, "--processes", "3", "--json", folder=tmp_path)
    worker, ranks = ranks_in_training(run)
    os.kill(worker, signal.SIGKILL)
    run.communicate()
    assert run.returncode == 1
    assert ended(ranks)

    run = start(*ASKED, "--processes", "2", "--json", folder=tmp_path)
    _, ranks = ranks_in_training(run)
    run.send_signal(signal.SIGINT)
    asked = time.monotonic()
    run.communicate()
    assert run.returncode == 130
    assert time.monotonic() - asked < 10
    assert ended(ranks)

    done = speculators(*ASKED, folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "going on after step" in (tmp_path / "runs/tiny/latest/events.jsonl").read_text()
    found = losses(tmp_path)
    assert speculators(*ASKED, "--force", "train", folder=tmp_path).returncode == 0
    assert found == pytest.approx(losses(tmp_path), rel=1e-2)  # products are rounded to bfloat16
