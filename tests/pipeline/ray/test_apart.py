"""Ray's nodes that share no disk: a step uses its node's own store, and the remote one is what all have in common."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speculators.errors import MachineError
from speculators.pipeline.remote import Remote
from speculators.pipeline.store import Store

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'speculators[ray]'")

pytestmark = pytest.mark.xdist_group("ray")  # one cluster, not one for each process that tests

NODES = ("head", "other", "lost", "spare")


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/shared"


@pytest.fixture
def run(ray_toy, executor, url, cluster):
    """Runs the toy on nodes with stores of their own, empty at first."""
    for name in NODES:
        shutil.rmtree(cluster.disks / name, ignore_errors=True)

    def start(data=None, asked=None, **selection):
        there = executor(remote=url, **(asked or {}))
        return ray_toy.run(data, executor=there, remote=Remote.open(url), apart=True, **selection)

    return start


def stored(root):
    """The steps with an artifact in a store."""
    return {
        path.name.rpartition("-")[0] for path in (root / "artifacts").glob("*") if (path / "artifact.json").is_file()
    }


def pids(toy, step="shards"):
    lines = [line for place in toy.runs.glob("toy/20*/events.jsonl") for line in place.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    return [event["pid"] for event in events if event["event"] == "step_started" and event["step"] == step]


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_steps_read_and_leave_artifacts_in_the_remote_store(run, ray_toy, cluster, tmp_path):
    done = run()
    assert done.outcome.exit_code == 0, done.outcome.failures
    assert set(done.did.values()) == {"step_finished"}
    assert stored(tmp_path / "shared") == {"numbers", "shards", "words", "total"}
    assert stored(ray_toy.store.root) == {"total"}  # what the report reads, and no more
    assert stored(cluster.disks / "head") | stored(cluster.disks / "other") >= {"numbers", "shards", "words", "total"}
    assert (done.artifact("total") / "total.txt").read_text() == "6"
    assert (done.folder / "report.html").is_file()


def test_what_steps_tell_stands_in_the_run_s_folder(run):
    done = run()
    assert done.log("numbers").splitlines() == ["numbers were here"]
    assert "wrote 3 numbers" in done.said
    assert [event["values"] for event in done.events if event["event"] == "metric"] == [{"total": 6.0, "odd": None}]
    assert {event["run"] for event in done.events} == {done.events[0]["run"]}
    assert all(event["step"] in done.did for event in done.events if event["event"] == "progress")


def test_what_is_here_or_in_the_remote_store_is_not_made_again(run, ray_toy, another, url):
    ray_toy.run(until=("numbers",))
    another("laptop").run(until=("words",), push_to=Remote.open(url))
    done = run()
    assert done.outcome.exit_code == 0, done.outcome.failures
    assert {step for step, event in done.did.items() if event == "step_finished"} == {"shards", "total", "report"}
    assert "pushed" in " ".join(done.said)


def test_a_step_that_fails_says_so_as_it_would_here(run, another):
    done = run({"shards": {"fail": "error"}})
    assert done.outcome.exit_code == 1
    (failure,) = done.outcome.failures
    assert str(failure).startswith("shards failed: ValueError: the shards did not come out\n\n")
    assert str(failure).endswith(f"its whole output: {done.folder}/logs/shards.log")
    assert done.log("shards") == another("laptop").run({"shards": {"fail": "error"}}).log("shards")
    assert run({"shards": {"fail": "machine"}}).outcome.exit_code == 5


def test_a_forced_step_replaces_what_the_remote_store_has(run):
    data = {"total": {"noise": True}}
    first = (run(data).artifact("total") / "total.txt").read_text()
    again = (run(data, force=("total",)).artifact("total") / "total.txt").read_text()
    assert again != first
    assert (run(data).artifact("total") / "total.txt").read_text() == again


def test_what_is_made_again_is_what_later_steps_read_wherever_an_older_one_lies(run, ray_toy, cluster, tmp_path):
    data = {"numbers": {"noise": True}}
    before = (ray_toy.run(data).artifact("shards") / "noise.txt").read_text()
    shutil.copytree(ray_toy.store.root, cluster.disks / "lost")
    run(data, force=("numbers",), until=("numbers",))
    node = cluster.node(4, "lost")
    done = run(data, asked={"cpus": ["shards=3"]})  # no other node has as many
    cluster.remove_node(node)
    assert done.outcome.exit_code == 0, done.outcome.failures
    assert done.did["shards"] == "step_finished"
    assert sum("of shards to" in text for text in done.said) == 1  # nor does the next step make them
    pushed = {place.name.partition("-")[0]: place for place in (tmp_path / "shared/artifacts").iterdir()}
    made = {step: json.loads((place / "artifact.json").read_text()) for step, place in pushed.items()}
    noises = [(pushed[step] / made[step]["instance"] / "noise.txt").read_text() for step in ("numbers", "shards")]
    assert noises[0] == noises[1] != before
    assert made["shards"]["instances"] == {"numbers": made["numbers"]["instance"]}
    assert made["total"]["instances"]["shards"] == made["shards"]["instance"]


def test_an_input_that_is_spoilt_in_the_remote_store_is_made_where_it_is_needed(run, cluster, ray_toy, tmp_path):
    run(until=("shards",))
    for name in NODES:
        shutil.rmtree(cluster.disks / name, ignore_errors=True)
    (spoilt,) = (tmp_path / "shared/artifacts").glob("shards-*/*/shard-1.txt")
    spoilt.chmod(0o644)
    spoilt.write_text("7")
    shutil.rmtree(ray_toy.store.root / "artifacts")
    (ray_toy.store.root / "artifacts").mkdir()
    done = run()
    assert done.outcome.exit_code == 0, done.outcome.failures
    assert (done.artifact("total") / "total.txt").read_text() == "6"
    assert spoilt.read_text() == "2"


def test_a_lost_node_s_step_begins_again_elsewhere(run, ray_toy, cluster, barrier, in_thread):
    lost = cluster.node(4, "lost")
    stop = barrier("shard-1")
    running = in_thread(run, asked={"cpus": ["shards=3"]}, until=("shards",))  # no other node has as many
    stop.reached()
    stop.remove()
    assert "numbers" in stored(cluster.disks / "lost")  # fetched
    spare = cluster.node(3, "spare")
    cluster.remove_node(lost, allow_graceful=False)
    done = running.join()
    cluster.remove_node(spare)
    assert done.outcome.exit_code == 0, done.outcome.failures
    assert stored(cluster.disks / "spare") == {"numbers", "shards"}
    assert len(pids(ray_toy)) == 2


def test_a_task_whose_process_is_killed_starts_again(run, ray_toy, barrier, in_thread):
    stop = barrier("shard-1")
    running = in_thread(run, until=("shards",))
    stop.reached()
    until(lambda: pids(ray_toy))
    (worker,) = pids(ray_toy)
    stop.remove()
    os.kill(parent(parent(worker)), signal.SIGKILL)  # Ray's process, above that which plans and that of the step
    done = running.join()
    assert done.outcome.exit_code == 0, done.outcome.failures
    until(lambda: not Path(f"/proc/{worker}").exists())
    assert len(pids(ray_toy)) == 2


def test_a_machine_on_which_a_step_is_another_one_says_so(run, ray_toy, tmp_path, url, monkeypatch, capsys):
    from speculators.pipeline import apart

    file = tmp_path / "words"
    file.write_text("one")
    _, folder = ray_toy.start({"words": {"file": str(file)}})
    monkeypatch.setenv("SPECULATORS_STORE", str(tmp_path / "own"))
    monkeypatch.setenv("SPECULATORS_REMOTE", url)
    file.write_text("two")
    assert apart.main(folder.path, "words", 5.0) == 1
    assert capsys.readouterr().out.startswith("words is not on this machine what it is where the run was planned")


def test_a_remote_store_that_a_node_cannot_reach_is_told_before_anything_is_planned(executor):
    with pytest.raises(MachineError, match=r"the remote store s3://\*\*\*@nowhere.*") as raised:
        executor(remote="s3://name:secret@nowhere/there")
    assert "secret" not in str(raised.value)


def test_a_real_recipe_trains_on_nodes_without_a_common_disk(cluster, tmp_path):
    store, runs, shared = tmp_path / "store", tmp_path / "runs", tmp_path / "shared"
    argv = [sys.executable, "-m", "speculators", "run", "tiny", "--until", "train", "--executor", "ray"]
    argv += ["--ray-address", cluster.address, "--store", str(store), "--runs", str(runs), "--no-shared-disk"]
    argv += ["--set", "train.epochs=1", "--set", "data.hidden_states.keep=until_trained"]
    refused = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2
    assert "--no-shared-disk needs --remote URL" in refused.stderr
    argv += ["--remote", f"file://{shared}"]
    refused = subprocess.run([*argv, "--nodes", "2"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2
    assert "--nodes 2: what machines do together lies on a disk that they share" in refused.stderr
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runs / "tiny/latest/steps/train/model.safetensors").is_file()
    assert stored(Store(store).root) == {"train"}
    assert stored(shared) == {"verifier", "prompts", "answers", "tokens", "vocabulary", "train"}
    assert "hidden_states is no longer needed and was removed from file://" in done.stdout + done.stderr
