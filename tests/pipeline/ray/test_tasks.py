"""Steps as tasks of a Ray cluster: a real one, of two nodes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speculators.errors import MachineError
from speculators.pipeline.executors.base import Caller, Work
from speculators.pipeline.executors.ray import RayExecutor
from speculators.pipeline.executors.requests import Requests
from speculators.pipeline.remote import Remote

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'speculators[ray]'")

pytestmark = pytest.mark.xdist_group("ray")  # one cluster, not one for each process that tests

RUNNER = """
import sys
from pathlib import Path
import toy_graph
from speculators.pipeline.executors.base import Work
from speculators.pipeline.executors.ray import RayExecutor
from speculators.pipeline.executors.requests import Requests
from speculators.pipeline.folder import Consent, create_run
from speculators.pipeline.plan import Selection, make_plan
from speculators.pipeline.run import run_plan
from speculators.pipeline.store import Store

store, runs = Path(sys.argv[1]), Path(sys.argv[2])
plan = make_plan(toy_graph.reassemble({}), Store.open(store), Selection(until=("shards",)))
executor = RayExecutor(Requests(), store, runs, address=sys.argv[3], grace=5.0)
folder = create_run(runs, plan, consent=Consent(), texts={})
sys.exit(run_plan(plan, folder, executor).exit_code)
"""


def pids(toy, step="shards"):
    import json

    lines = [line for place in toy.runs.glob("toy/20*/events.jsonl") for line in place.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    return [e["pid"] for e in events if e["event"] == "step_started" and e["step"] == step]


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_step_is_a_task_and_the_run_ends_as_it_would_here(ray_toy, executor):
    there = executor(cpus=["shards=2"])
    run = ray_toy.run(executor=there)
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert set(run.did.values()) == {"step_finished"}
    assert (run.artifact("total") / "total.txt").read_text() == "6"
    assert "numbers were here" in run.log("numbers")
    failed = ray_toy.run({"shards": {"fail": "error"}}, executor=there, until=("shards",), force=("shards",))
    assert "shards failed: ValueError: the shards did not come out" in str(failed.outcome.failures[0])


def test_a_cluster_takes_from_a_remote_store_what_another_made_and_pushes_its_own(ray_toy, another, executor, tmp_path):
    remote = Remote.open(f"file://{tmp_path}/shared")
    another("laptop").run(until=("words",), push_to=remote)
    run = ray_toy.run(executor=executor(), remote=remote, push_to=remote)
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert run.did["words"] == "step_cached"
    assert another("second").run(remote=remote).did["total"] == "step_cached"


def test_a_step_gets_the_variables_that_are_meant_for_it_and_the_cpus_it_asked_for(ray_toy, executor, monkeypatch):
    monkeypatch.setenv("SPECULATORS_EXAMPLE", "handed on")
    monkeypatch.setenv("EXAMPLE", "our own")
    _, folder = ray_toy.start(until=("numbers",))
    script = "import os; print([os.environ.get(n) for n in ('SPECULATORS_EXAMPLE', 'EXAMPLE', 'OMP_NUM_THREADS')])"
    work = Work("numbers", (sys.executable, "-c", script), folder.log("numbers"), artifact="numbers-0")
    assert executor(cpus=["2"]).run(work) == 0
    assert folder.log("numbers").read_text() == "['handed on', None, '2']\n"


def test_a_task_whose_process_is_killed_starts_again_and_the_step_goes_on(ray_toy, executor, barrier, in_thread):
    there = executor()
    stop = barrier("shard-1")
    running = in_thread(ray_toy.run, executor=there, until=("shards",))
    stop.reached()
    (worker,) = pids(ray_toy)
    stop.remove()
    os.kill(parent(worker), signal.SIGKILL)  # Ray's process; the step's own ends as the pipe to it closes
    run = running.join()
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert len(pids(ray_toy)) == 2
    made = [line for line in run.log("shards").splitlines() if line.startswith("made")]
    assert made == ["made shard-0.txt", "made shard-1.txt", "made shard-2.txt"]


def test_a_lost_node_s_step_goes_on_elsewhere(ray_toy, cluster, executor, barrier, in_thread):
    lost = cluster.node(4, "lost")
    there = executor(cpus=["shards=3"])  # no other node has as many
    stop = barrier("shard-1")
    running = in_thread(ray_toy.run, executor=there, until=("shards",))
    stop.reached()
    stop.remove()
    spare = cluster.node(3, "spare")
    cluster.remove_node(lost, allow_graceful=False)
    run = running.join()
    cluster.remove_node(spare)
    assert run.outcome.exit_code == 0, run.outcome.failures
    made = [line for line in run.log("shards").splitlines() if line.startswith("made")]
    assert made == ["made shard-0.txt", "made shard-1.txt", "made shard-2.txt"]


def on_two_nodes(toy, script):
    """A command for both nodes, and its logs."""
    _, folder = toy.start(until=("numbers",))
    work = Work("any", (sys.executable, "-c", script), folder.log("any"), artifact="any-0", nodes=2)
    return work, (folder.log("any"), folder.log("any").with_name("any.node-1.log"))


def test_nodes_that_do_a_step_together_are_told_who_they_are_and_where_they_meet(ray_toy, executor):
    work, logs = on_two_nodes(ray_toy, "import sys; print(sys.argv[2])")
    assert executor().run(work) == 0
    (first, second), (there, again) = zip(*(log.read_text().split("@") for log in logs), strict=True)
    assert (first, second) == ("0", "1")
    assert there == again
    assert there.rpartition(":")[2].strip().isdecimal()


def test_a_node_that_is_lost_ends_the_others_and_all_start_again(ray_toy, executor, tmp_path):
    script = f"""
import os, pathlib, signal, sys, time
first, other = pathlib.Path({str(tmp_path / "was here")!r}), pathlib.Path({str(tmp_path / "other")!r})
if first.exists():
    print("again")
elif sys.argv[2].startswith("1@"):
    while not other.exists():
        time.sleep(0.05)
    first.touch()
    os.kill(os.getppid(), signal.SIGKILL)  # Ray's process
    time.sleep(60)
else:
    other.touch()
    while not first.exists():
        time.sleep(0.05)
    sys.exit("nobody to train with")
"""
    work, logs = on_two_nodes(ray_toy, script)
    told = []
    assert executor().run(work, Caller(tell=told.append)) == 0
    assert told == ["a node or process of any was lost; it starts again from what was saved"]
    assert logs[0].read_text().splitlines() == ["nobody to train with", "again"]


def test_a_step_that_fails_on_one_node_fails(ray_toy, executor):
    work, _ = on_two_nodes(ray_toy, "import sys; sys.exit(3 if sys.argv[2].startswith('1@') else 0)")
    assert executor().run(work) == 3


def test_a_node_that_waits_for_one_that_failed_is_ended_and_the_failure_counts(ray_toy, executor, monkeypatch):
    monkeypatch.setattr("speculators.pipeline.executors.ray_together._END_SECONDS", 2.0)
    work, _ = on_two_nodes(ray_toy, "import sys, time; sys.exit(3) if sys.argv[2].startswith('1@') else time.sleep(30)")
    told = []
    assert executor().run(work, Caller(tell=told.append)) == 3
    assert told == []


def test_two_nodes_answer_read_and_train_together(cluster, tmp_path):
    store, runs = tmp_path / "store", tmp_path / "runs"
    argv = [sys.executable, "-m", "speculators", "run", "tiny", "--until", "train", "--executor", "ray", "--nodes", "2"]
    argv += ["--ray-address", cluster.address, "--store", str(store), "--runs", str(runs), "--set", "train.epochs=1"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (runs / "tiny/latest/events.jsonl").read_text().splitlines()]
    helped = [event["step"] for event in events if "node 1 has done its part" in event.get("text", "")]
    assert "train" in helped  # and in the others, unless they were done before it was there
    assert set(helped) <= {"answers", "hidden_states", "train"}
    assert (runs / "tiny/latest/steps/train/model.safetensors").is_file()
    refused = subprocess.run([*argv, "--node-rank", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2
    assert "--node-rank and --rendezvous are for --executor local" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_tasks_end_with_their_runner_and_the_next_run_goes_on(ray_toy, cluster, executor, barrier, number):
    stop = barrier("shard-1")
    argv = [sys.executable, "-c", RUNNER, str(ray_toy.store.root), str(ray_toy.runs), cluster.address]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: pids(ray_toy) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        stop.reached()
        (worker,) = pids(ray_toy)
        process.send_signal(number)
        assert process.wait(timeout=60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not Path(f"/proc/{worker}").exists())
    assert not list(ray_toy.store.artifacts.glob("shards-*"))
    stop.remove()
    run = ray_toy.run(executor=executor(), until=("shards",))
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert run.log("shards").split() == ["made", "shard-2.txt"]


def test_a_store_that_the_nodes_do_not_share_is_told_before_anything_is_planned(store, executor, monkeypatch):
    from dataclasses import replace

    from speculators.pipeline.executors import ray as module

    class Elsewhere(module.Shared):
        @classmethod
        def of(cls, root):
            return replace(module.Shared(root, 0), made=1)

    monkeypatch.setattr(module, "Shared", Elsewhere)
    with pytest.raises(MachineError, match="does not see the store"):
        executor()


def test_locks_that_do_not_reach_the_nodes_are_told(executor, monkeypatch):
    from speculators.pipeline.executors import ray_node

    monkeypatch.setattr(ray_node.fcntl, "flock", lambda *arguments: None)  # here only, so the lock is not held
    with pytest.raises(MachineError, match="a lock of another machine does not hold"):
        executor()


def test_a_measurement_is_planned_for_a_node_that_has_what_it_asks_for(toy_graph, executor):
    from speculators.pipeline.machine import machine_key

    there = executor(gpus=["shards=8"])
    assert there.machine(toy_graph.STEPS[0]) == machine_key()
    with pytest.raises(MachineError, match="no node of the Ray cluster has 8 GPUs, 1 CPUs, which shards asks for"):
        there.machine(toy_graph.STEPS[1])


def test_where_there_is_no_cluster_it_says_how_to_name_one(store, tmp_path, monkeypatch):
    def init(address, **options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(MachineError, match=r"no Ray cluster was found \(Could not .*ray start --head"):
        RayExecutor(Requests(), store.root, tmp_path)
    with pytest.raises(MachineError, match=r"no Ray cluster at head:1"):
        RayExecutor(Requests(), store.root, tmp_path, address="head:1")
