"""Killing a run, a worker, or both, at every moment: nothing half done looks done, and nothing done is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = """
import sys
from pathlib import Path
import toy_graph
from speculators.pipeline.executors.local import LocalExecutor
from speculators.pipeline.folder import Consent, create_run
from speculators.pipeline.plan import make_plan
from speculators.pipeline.run import run_plan
from speculators.pipeline.store import Store

plan = make_plan(toy_graph.reassemble({}), Store.open(Path(sys.argv[1])))
folder = create_run(Path(sys.argv[2]), plan, consent=Consent(), texts={})
sys.exit(run_plan(plan, folder, LocalExecutor(grace=2.0)).exit_code)
"""


@pytest.fixture
def runner(toy):
    """Starts a whole run as a process of its own."""
    started = []

    def start():
        argv = [sys.executable, "-c", RUNNER, str(toy.store.root), str(toy.runs)]
        started.append(subprocess.Popen(argv, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition) -> None:
    """Poll: the end of a process that is not our child cannot be waited for."""
    import time

    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killing_the_worker_between_shards_keeps_the_finished_ones(toy, barrier, in_thread):
    stop = barrier("shard-1")
    running = in_thread(toy.run)
    stop.reached()
    (partial,) = (path for path in toy.store.partials.glob("shards-*") if path.is_dir())
    assert sorted(path.name for path in partial.iterdir()) == ["shard-0.txt", "shard-1.txt"]
    pid = next(
        int(event["pid"]) for event in events(toy) if event["event"] == "step_started" and event["step"] == "shards"
    )
    os.kill(pid, signal.SIGKILL)
    run = running.join()
    assert run.outcome.exit_code == 1
    assert "SIGKILL" in str(run.outcome.failures[0])
    assert not list(toy.store.artifacts.glob("shards-*"))
    stop.remove()
    again = toy.run()
    assert again.outcome.exit_code == 0
    assert again.did["numbers"] == "step_cached"
    assert [line for line in again.log("shards").splitlines() if line.startswith("made")] == ["made shard-2.txt"]
    assert next(e for e in again.events if e["event"] == "step_started" and e["step"] == "shards")["resumed"] is True
    assert (again.artifact("total") / "total.txt").read_text() == "6"


def test_a_killed_runner_takes_its_workers_with_it_and_the_next_run_goes_on(toy, barrier, runner):
    stop = barrier("shard-0")
    process = runner()
    stop.reached()
    pid = next(
        int(event["pid"]) for event in events(toy) if event["event"] == "step_started" and event["step"] == "shards"
    )
    process.kill()
    process.wait()
    wait_until(lambda: gone(pid))
    assert not list(toy.store.artifacts.glob("shards-*"))
    stop.remove()
    again = toy.run()
    assert again.outcome.exit_code == 0
    assert "made shard-0.txt" not in again.log("shards")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_workers_says_so_and_exits_with_130(toy, barrier, runner, number):
    stop = barrier("shard-0")
    process = runner()
    stop.reached()
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    last = events(toy)[-1]
    assert (last["event"], last["status"]) == ("run_finished", "interrupted")
    assert not [event for event in events(toy) if event["event"] == "step_failed"]
    stop.remove()
    assert toy.run().outcome.exit_code == 0


@pytest.mark.parametrize("moment", ["chmod", "write", "rename"])
def test_killing_a_worker_while_it_publishes_leaves_nothing_that_looks_finished(toy, tmp_path, monkeypatch, moment):
    patched = {
        "chmod": "pathlib.Path.chmod = lambda *a, **k: os.kill(os.getpid(), 9)",
        "write": "speculators.pipeline.manifest.Manifest.write = lambda *a: os.kill(os.getpid(), 9)",
        "rename": "pathlib.Path.rename = lambda *a: os.kill(os.getpid(), 9)",
    }[moment]
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, pathlib\n"
        "if 'numbers' in sys.argv or 'numbers' in open('/proc/self/cmdline').read():\n"
        "    import speculators.pipeline.manifest\n"
        f"    {patched}\n"
    )
    whole = os.environ["PYTHONPATH"]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{whole}")
    run = toy.run(until=("numbers",))
    assert "SIGKILL" in str(run.outcome.failures[0])
    assert not list(toy.store.artifacts.iterdir())
    monkeypatch.setenv("PYTHONPATH", whole)
    assert toy.run().outcome.exit_code == 0


def test_what_a_worker_leaves_running_is_ended_with_it(toy, toy_graph, tmp_path):
    from speculators.pipeline.executors.base import Work
    from speculators.pipeline.executors.local import LocalExecutor

    script = "import subprocess,sys; p=subprocess.Popen(['sleep','600']); print(p.pid)"
    work = Work("any", (sys.executable, "-c", script), tmp_path / "log")
    assert LocalExecutor().run(work) == 0
    wait_until(lambda: gone(int((tmp_path / "log").read_text())))


def test_two_runs_at_once_do_the_work_once_and_both_succeed(toy, barrier, in_thread):
    stop = barrier("shard-0")
    first, folders = in_thread(toy.run), None
    stop.reached()
    second = in_thread(toy.run)
    wait_until(lambda: any("waiting for pid" in path.read_text() for path in toy.runs.glob("toy/20*/events.jsonl")))
    stop.open()
    runs = [first.join(), second.join()]
    assert folders is None
    assert [run.outcome.exit_code for run in runs] == [0, 0]
    assert sorted(run.did["shards"] for run in runs) == ["step_cached", "step_finished"]
    waited = next(
        event["text"] for event in runs[1].events if event["event"] == "message" and event["step"] == "shards"
    )
    assert "which started the same work" in waited
    assert len(list(toy.store.artifacts.iterdir())) == 4


def test_unfinished_work_begun_with_other_inputs_is_not_continued(toy):
    folder = toy.store.partial("shards-0123456789abcdef", {"numbers": "a"})
    (folder / "shard-0.txt").write_text("old")
    assert list(toy.store.partial("shards-0123456789abcdef", {"numbers": "a"}).iterdir())
    assert not list(toy.store.partial("shards-0123456789abcdef", {"numbers": "b"}).iterdir())


def events(toy) -> list[dict]:
    import json

    (file,) = toy.runs.glob("toy/20*/events.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]
