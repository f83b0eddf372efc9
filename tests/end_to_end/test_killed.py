"""Killing real runs, step after step: what was finished stays, nothing half done looks whole, the end is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.xdist_group("killed")  # the run that nobody disturbs is made once

WORKING = {"answers", "train", "acceptance"}
"""Steps with seconds of work below: these are killed in the middle of it, the others as they begin."""
SETS = [
    *("--set", "data.regenerate.max_new_tokens=160"),
    *("--set", "train.epochs=4", "--set", "train.tokens_per_step=512", "--set", "train.checkpoint.every=1"),
    *("--set", "eval.acceptance.max_new_tokens=300", "--set", "eval.acceptance.concurrency=1"),
]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The checkpoint and the acceptance figures of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("untouched")
    environment = {**os.environ, "SPECULATORS_STORE": str(folder / "store")}
    command = [sys.executable, "-m", "speculators", "run", "tiny", *SETS, "--until", "acceptance"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return outcome(folder)


def outcome(folder: Path):
    latest = folder / "runs/tiny/latest"
    figures = json.loads((latest / "steps/acceptance/acceptance.json").read_text())["suites"]["holdout"]
    kept = ("acceptance_length", "positions", "rounds", "tokens", "lossless")
    return (
        (latest / "steps/checkpoint/model.safetensors").read_bytes(),
        {name: {key: measured[key] for key in kept} for name, measured in figures.items()},
    )


def still_running(store: Path) -> list[list[str]]:
    """Commands that still have something of the store among their arguments."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in found if any(str(store) in argument for argument in command)]


def wait_for(process: subprocess.Popen[str], step: str) -> int:
    """Read the run's events until `step` is where it shall be killed; gives its worker's pid."""
    pid = 0
    for line in process.stdout or ():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        if event.get("step") == step and event["event"] == "step_started":
            pid = event["pid"]
            if step not in WORKING:
                return pid
        if event.get("step") == step and event["event"] == "progress":
            return pid
    raise AssertionError(f"{step} never began: exit {process.wait()}")


@pytest.mark.timeout(600)
def test_a_kill_in_every_step_loses_nothing_finished_and_changes_nothing(
    start, speculators, results, steps, untouched, tmp_path
):
    """The whole run is killed, and where nothing else could go on meanwhile, its worker alone.

    `vocabulary` runs beside `hidden_states`, so it is killed with it.
    """
    store = tmp_path / "store"
    for step in (name for name in steps if name != "vocabulary"):
        run = start("run", "tiny", *SETS, "--json", folder=tmp_path, store=store)
        worker, alone = wait_for(run, step), step in (steps[0], steps[-1])
        os.kill(worker if alone else run.pid, signal.SIGKILL)
        run.communicate()
        assert run.returncode == (1 if alone else -signal.SIGKILL)
        artifacts = [folder for folder in (store / "artifacts").iterdir() if folder.name.startswith(f"{step}-")]
        assert artifacts == []
        assert all((folder / "artifact.json").is_file() for folder in (store / "artifacts").iterdir())
    last = speculators("run", "tiny", *SETS, folder=tmp_path, store=store)
    assert last.returncode == 0, last.stdout
    found = results(tmp_path, "tiny")["steps"]
    assert [found[name]["status"] for name in steps] == ["cached"] * (len(steps) - 1) + ["finished"]
    assert outcome(tmp_path) == untouched
    assert speculators("cache", "verify", folder=tmp_path, store=store).returncode == 0
    assert still_running(store) == []


@pytest.mark.timeout(300)
def test_two_runs_at_once_share_one_store_and_do_everything_once(start, steps, untouched, tmp_path):
    store = tmp_path / "my store"
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    asked = ("run", "tiny", *SETS, "--until", "acceptance", "--json")
    runs = [start(*asked, folder=folder, store=store) for folder in folders]
    printed = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    events = [json.loads(line) for text in printed for line in text.splitlines() if line.startswith("{")]
    begun = [event["step"] for event in events if event["event"] == "step_started"]
    assert sorted(begun) == sorted(steps[: steps.index("acceptance") + 1])
    for folder in folders:
        assert outcome(folder) == untouched


@pytest.mark.timeout(300)
def test_damaged_artifacts_are_found_and_made_again(speculators, results, untouched, tmp_path):
    store = tmp_path / "store"
    until = ("--until", "train")
    assert speculators("run", "tiny", *SETS, *until, folder=tmp_path, store=store).returncode == 0
    (states,) = (store / "artifacts").glob("hidden_states-*/states-00000.safetensors")
    (tokens,) = (store / "artifacts").glob("tokens-*/tokens.json")
    (draft,) = (store / "artifacts").glob("train-*/model.safetensors")
    states.chmod(0o644)
    with states.open("r+b") as file:
        file.truncate(states.stat().st_size - 1)
    tokens.chmod(0o644)
    tokens.write_text(tokens.read_text().replace('"documents"', '"documentz"'))
    draft.chmod(0o644)
    with draft.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xff" * 8)
    again = speculators("run", "tiny", *SETS, "--until", "acceptance", folder=tmp_path, store=store)
    assert again.returncode == 0, again.stdout
    found = results(tmp_path, "tiny")["steps"]
    assert {found[name]["status"] for name in ("verifier", "prompts", "answers")} == {"cached"}
    assert {found[name]["status"] for name in ("hidden_states", "tokens", "train")} == {"finished"}
    assert outcome(tmp_path) == untouched
