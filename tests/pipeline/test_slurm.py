"""Steps as jobs of Slurm: submitit's real code over stand-ins for sbatch, srun, squeue, scancel, sacct and scontrol."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from speculators.errors import MachineError
from speculators.pipeline.executors.base import Work
from speculators.pipeline.executors.node import Shared
from speculators.pipeline.executors.requests import Requests
from speculators.pipeline.executors.slurm import Site, SlurmExecutor
from speculators.pipeline.executors.slurm_job import StepJob
from speculators.pipeline.remote import Remote

submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install 'speculators[slurm]'")

FAKE = Path(__file__).parent / "slurm" / "fake_slurm.py"
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sacct", "scontrol")
QUICK = {"result_seconds": 0.05, "state_seconds": 0.2, "unseen_seconds": 0.3}

RUNNER = """
import sys
from pathlib import Path
import toy_graph
from speculators.pipeline.executors.requests import Requests
from speculators.pipeline.executors.slurm import Site, SlurmExecutor
from speculators.pipeline.folder import Consent, create_run
from speculators.pipeline.plan import Selection, make_plan
from speculators.pipeline.run import run_plan
from speculators.pipeline.store import Store

store, runs = Path(sys.argv[1]), Path(sys.argv[2])
plan = make_plan(toy_graph.reassemble({}), Store.open(store), Selection(until=("shards",)))
folder = create_run(runs, plan, consent=Consent(), texts={})
site = Site(result_seconds=0.05, state_seconds=0.2, unseen_seconds=0.3)
executor = SlurmExecutor(Requests(), store, runs, grace=30.0, site=site)
sys.exit(run_plan(plan, folder, executor).exit_code)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The stand-ins on PATH; `.jobs()` are the ids so far, `.script(job)` what was submitted, `.state(job, new)`."""
    home, programs = tmp_path / "slurm", tmp_path / "bin"
    (home / "jobs").mkdir(parents=True)
    programs.mkdir()
    for name in COMMANDS:
        place = programs / name
        place.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{FAKE}" {name} "$@"\n')
        place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))

    def state(job, new=None):
        place = home / "jobs" / job / "state"
        if new:
            place.write_text(new)
        return place.read_text() if place.exists() else None  # not yet

    def lose(job, ended_as):
        """End the job's processes as a node that goes away would."""
        state(job, ended_as)
        os.killpg(int((home / "jobs" / job / "pid").read_text()), signal.SIGKILL)

    yield SimpleNamespace(
        home=home,
        programs=programs,
        jobs=lambda: sorted(place.name for place in (home / "jobs").iterdir()),
        script=lambda job: (home / "jobs" / job / "script").read_text(),
        name=lambda job: (home / "jobs" / job / "name").read_text(),
        state=state,
        lose=lose,
        pid=lambda job: int((home / "jobs" / job / "pid").read_text()),
        cancelled=lambda: (home / "cancelled").read_text() if (home / "cancelled").exists() else "",
    )
    for place in (home / "jobs").glob("*/pid"):
        with contextlib.suppress(ProcessLookupError, ValueError, FileNotFoundError):
            os.killpg(int(place.read_text()), signal.SIGKILL)


@pytest.fixture
def executor(slurm, store, tmp_path):
    """Makes an executor that looks often; arguments are options as on the command line, by name."""

    def make(grace=30.0, arguments=None, account=None, **asked):
        site = Site(account, arguments or {}, **QUICK)
        return SlurmExecutor(Requests.parse(asked), store.root, tmp_path / "runs", grace=grace, site=site)

    return make


@pytest.fixture
def runner(toy, slurm):
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


@pytest.fixture
def at_shard(toy, slurm, executor, barrier, in_thread):
    """`at_shard(1)`: a run whose job for `shards` has stopped there and would go on at once after `.stop.open()`."""

    def begin(number):
        toy.run(until=("numbers",))
        stop = barrier(f"shard-{number}")
        running = in_thread(toy.run, executor=executor(), until=("shards",))
        stop.reached()
        (job,) = slurm.jobs()
        return SimpleNamespace(run=running, job=job, stop=stop)

    return begin


@pytest.fixture
def abandoned(toy, slurm, runner, barrier):
    """Its runner was killed while the job for `shards` was at the second one."""
    toy.run(until=("numbers",))
    stop = barrier("shard-1")
    process = runner()
    stop.reached()
    process.kill()
    process.wait()
    (job,) = slurm.jobs()
    assert slurm.state(job) == "RUNNING"
    return SimpleNamespace(job=job, stop=stop)


def until(condition, seconds=60):
    """Poll for what another process will do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told(run, step="shards"):
    return [event["text"] for event in run.events if event["event"] == "message" and event.get("step") == step]


def made(run):
    return [line for line in run.log("shards").splitlines() if line.startswith("made")]


def test_a_cluster_takes_from_a_remote_store_what_another_made_and_pushes_its_own(
    toy, another, executor, slurm, tmp_path
):
    """The runner does both, so no job is submitted for what was made elsewhere."""
    remote = Remote.open(f"file://{tmp_path}/shared")
    another("laptop").run(until=("words",), push_to=remote)
    run = toy.run(executor=executor(), remote=remote, push_to=remote)
    assert run.outcome.exit_code == 0
    assert run.did["words"] == "step_cached"
    assert len(slurm.jobs()) == 3
    assert another("second").run(remote=remote).did["total"] == "step_cached"


def test_every_step_is_a_job_and_the_run_ends_as_it_would_here(toy, slurm, executor):
    asked = {"gpus": ["1", "words=0"], "cpus": ["4"], "memory": ["shards=8GB"], "time": ["90m", "total=1d"]}
    run = toy.run(
        executor=executor(**asked, partition=["gpu", "words=cpu"], account="us", arguments={"constraint": "h100"})
    )
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert set(run.did.values()) == {"step_finished"}
    assert (run.artifact("total") / "total.txt").read_text() == "6"
    assert "numbers were here" in run.log("numbers")
    by_step = {slurm.name(job).partition("-")[0]: slurm.script(job) for job in slurm.jobs()}
    assert by_step.keys() == {"numbers", "shards", "words", "total"}  # the report is written here
    options = {step: set(re.findall(r"#SBATCH --(\S+)", script)) for step, script in by_step.items()}
    assert {"partition=gpu", "account=us", "constraint=h100", "gpus-per-node=1", "requeue", "time=90"} <= options[
        "shards"
    ]
    assert {"cpus-per-task=4", "mem=7629M", "signal=USR2@90", "open-mode=append"} <= options["shards"]
    assert "--cpus-per-task 4" in by_step["shards"]  # srun no longer takes it from sbatch
    assert "time=1440" in options["total"]
    assert "partition=cpu" in options["words"]
    assert not [option for option in options["words"] if option.startswith(("gpus", "mem"))]
    assert toy.run(executor=executor()).did == dict.fromkeys(run.did, "step_cached")
    assert len(slurm.jobs()) == 4


def test_a_failing_step_fails_as_it_would_here(toy, executor):
    run = toy.run({"shards": {"fail": "error"}}, executor=executor(), until=("shards",))
    assert run.outcome.exit_code == 1
    assert "shards failed: ValueError: the shards did not come out" in str(run.outcome.failures[0])


def test_a_refused_job_says_what_sbatch_said(toy, slurm, executor):
    (slurm.home / "refuse").write_text("sbatch: error: invalid partition specified: gpuu")
    run = toy.run(executor=executor(partition=["gpuu"]), until=("numbers",))
    assert run.outcome.exit_code == 5
    assert "Slurm refused the job: sbatch: error: invalid partition specified: gpuu" in str(run.outcome.failures[0])


@pytest.mark.parametrize("ended_as", ["NODE_FAIL", "GONE"])
def test_a_lost_job_costs_no_more_than_the_shard_in_work(slurm, at_shard, ended_as):
    begun = at_shard(1)
    begun.stop.remove()
    if ended_as == "GONE":  # Slurm keeps finished jobs for some minutes only, and may have no accounting
        (slurm.home / "forget").touch()
    slurm.lose(begun.job, "FAILED" if ended_as == "GONE" else ended_as)
    run = begun.run.join()
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert f"Slurm job {begun.job} ended as {ended_as}; it is submitted again" in told(run)
    assert made(run) == ["made shard-0.txt", "made shard-1.txt", "made shard-2.txt"]


@pytest.mark.parametrize(
    ("ended_as", "words"), [("OUT_OF_MEMORY", "--memory STEP=SIZE"), ("CANCELLED", "by hand or by the cluster")]
)
def test_a_job_that_was_ended_otherwise_is_one_clear_error(slurm, at_shard, ended_as, words):
    begun = at_shard(0)
    slurm.lose(begun.job, ended_as)
    run = begun.run.join()
    said = str(run.outcome.failures[0])
    assert f"shards failed: Slurm job {begun.job} ended as {ended_as}" in said
    assert words in said
    assert "made shard-0.txt" in said  # the end of the step's own log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["preempted", "time is up"])
def test_a_job_that_must_end_saves_goes_back_into_the_queue_and_goes_on(slurm, at_shard, number):
    begun = at_shard(1)
    begun.stop.remove()
    os.kill(slurm.pid(begun.job), number)
    run = begun.run.join()
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert [line for line in run.log("shards").splitlines() if line] == [
        "made shard-0.txt", "made shard-1.txt", "interrupted", "made shard-2.txt",
    ]  # fmt: skip
    started = [event for event in run.events if event["event"] == "step_started"]
    assert [event["resumed"] for event in started] == [False, True]
    assert slurm.jobs() == [begun.job]


def test_submitit_s_own_local_executor_requeues_a_step(toy, barrier, tmp_path):
    _, folder = toy.start(until=("numbers",))
    argv = (sys.executable, "-c", "import sys; print('hello'); sys.exit(7)")
    work = Work("numbers", argv, folder.log("numbers"), {"PYTHONUNBUFFERED": "1"}, artifact="numbers-0")
    submitted = submitit.LocalExecutor(tmp_path / "jobs")
    submitted.update_parameters(timeout_min=1)
    job = submitted.submit(StepJob(work, Shared.of(toy.store.root), 5.0))
    assert job.result() == 7
    assert folder.log("numbers").read_text() == "hello\n"


def test_interrupting_the_runner_ends_its_jobs_and_takes_waiting_ones_out_of_the_queue(toy, slurm, runner, barrier):
    toy.run(until=("numbers",))
    stop = barrier("shard-0")
    process = runner()
    stop.reached()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (job,) = slurm.jobs()
    assert f"--signal=INT {job}" in slurm.cancelled()
    until(lambda: slurm.state(job) == "COMPLETED")  # it was not killed: it saved, ended and said 130
    assert any("interrupted" in place.read_text() for place in toy.runs.glob("toy/20*/logs/shards.log"))
    (slurm.home / "hold").touch()
    process = runner()
    until(lambda: any(slurm.state(job) == "PENDING" for job in slurm.jobs()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert "PENDING" not in {slurm.state(job) for job in slurm.jobs()}


def test_killing_all_cancels_the_jobs_before_the_runner_ends(slurm, executor, toy, barrier, in_thread):
    toy.run(until=("numbers",))
    stop, there = barrier("shard-0"), executor(grace=60.0)
    running = in_thread(toy.run, executor=there, until=("shards",))
    stop.reached()
    (job,) = slurm.jobs()
    there.kill()
    running.join()
    until(lambda: slurm.state(job) == "CANCELLED")


def test_a_killed_runner_s_job_goes_on_and_the_next_run_waits_for_it_and_takes_its_work(
    toy, slurm, abandoned, executor, in_thread
):
    again = in_thread(toy.run, executor=executor(), until=("shards",))
    until(lambda: any("waiting for Slurm job" in place.read_text() for place in toy.runs.glob("toy/20*/events.jsonl")))
    abandoned.stop.open()
    run = again.join()
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert run.did["shards"] == "step_cached"
    assert f"waiting for Slurm job {abandoned.job}" in told(run)[0]
    assert slurm.jobs() == [abandoned.job]


def test_a_step_that_the_other_job_did_not_finish_gets_a_job_of_its_own(toy, slurm, abandoned, executor, in_thread):
    again = in_thread(toy.run, executor=executor(), until=("shards",))
    until(lambda: any("waiting for Slurm job" in place.read_text() for place in toy.runs.glob("toy/20*/events.jsonl")))
    abandoned.stop.remove()
    slurm.lose(abandoned.job, "NODE_FAIL")
    run = again.join()
    assert run.outcome.exit_code == 0, run.outcome.failures
    assert run.did["shards"] == "step_finished"
    assert made(run) == ["made shard-2.txt"]


def test_a_node_that_does_not_see_the_store_says_so(toy, slurm, executor, tmp_path):
    there = executor()
    os.utime(toy.store.root / "store.json", (1, 1))  # another folder of the same name, as a node might have
    run = toy.run(executor=there, until=("numbers",))
    assert run.outcome.exit_code == 5
    assert "does not see the store" in str(run.outcome.failures[0])
    assert "--runs" in str(run.outcome.failures[0])


def test_a_measurement_is_planned_for_the_machine_that_a_job_found_and_asked_only_once(
    toy, toy_graph, slurm, executor, monkeypatch
):
    from dataclasses import replace

    from speculators.pipeline import machine

    (total,) = (step for step in toy_graph.STEPS if step.name == "total")
    here = executor(gpus=["1"])
    found = here.machine(replace(total, machine_bound=True))
    assert found == machine.machine_key()
    assert [slurm.name(job) for job in slurm.jobs()] == ["speculators-machine"]
    assert executor(gpus=["1"]).machine(total) == found
    assert len(slurm.jobs()) == 1
    executor(gpus=["2"]).machine(total)
    assert len(slurm.jobs()) == 2


def test_the_machine_of_a_node_that_does_not_see_the_store_is_not_asked(toy, toy_graph, executor):
    there = executor()
    os.utime(toy.store.root / "store.json", (1, 1))
    with pytest.raises(MachineError, match="does not see the store"):
        there.machine(toy_graph.STEPS[0])


def test_where_there_is_no_slurm_it_says_so(store, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="sbatch, srun, squeue, scancel not found"):
        SlurmExecutor(Requests(), store.root, tmp_path)


def test_no_secret_of_the_environment_is_written_to_the_shared_disk(toy, slurm, executor, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    run = toy.run(executor=executor(), until=("numbers",))
    assert run.outcome.exit_code == 0
    files = [place for place in (*run.folder.rglob("*"), *slurm.home.rglob("*")) if place.is_file()]
    assert any(place.suffix == ".pkl" for place in files)
    assert not [place for place in files if b"hf_very_secret" in place.read_bytes()]


def test_events_of_a_run_on_a_cluster_have_the_names_of_one_here(toy, executor):
    there, here = toy.run(executor=executor(), until=("numbers",)), toy.run(force=("numbers",), until=("numbers",))
    names = [{event["event"] for event in run.events} - {"message", "step_cached"} for run in (there, here)]
    assert names[0] == names[1]
    assert json.loads((there.folder / "plan.json").read_text())["steps"][0]["key"] == here.plan["numbers"].key
