"""A store, a folder of runs, and toy recipes to plan and run in them."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from speculators.pipeline.executors.local import LocalExecutor
from speculators.pipeline.folder import Consent, create_run, previous_run
from speculators.pipeline.plan import Selection, make_plan
from speculators.pipeline.run import run_plan
from speculators.pipeline.store import Store

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def toy_graph(monkeypatch):
    """The toy graph's module, which workers can import as well."""
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), str(Path(__file__).parents[2])]))
    import toy_graph

    return toy_graph


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def toy(toy_graph, store, tmp_path):
    """`toy.plan(data, force=("shards",))` and `toy.run(...)` on one store."""
    return toy_on(toy_graph, store, tmp_path / "runs")


@pytest.fixture
def another(toy_graph, tmp_path):
    """`another("b")` is a toy on another machine: with a store and runs of its own."""
    return lambda name: toy_on(toy_graph, Store.open(tmp_path / name / "store"), tmp_path / name / "runs")


def toy_on(toy_graph, store, runs):
    def plan(data=None, steps=None, remote=None, apart=False, **selection):
        assembly = toy_graph.reassemble(data or {})
        if steps is not None:
            assembly = SimpleNamespace(**{**vars(assembly), "steps": steps})
        return make_plan(assembly, store, Selection(**selection), remote=remote, apart=apart)

    def start(data=None, remote=None, apart=False, **selection):
        planned = plan(data, remote=remote, apart=apart, **selection)
        folder = create_run(runs, planned, consent=Consent(), texts={"recipe.yaml": json.dumps(data)})
        return planned, folder

    def run(data=None, executor=None, remote=None, push_to=None, apart=False, **selection):
        previous = previous_run(runs, "toy")
        planned, folder = start(data, remote=remote, apart=apart, **selection)
        events = []
        executor = executor or LocalExecutor(grace=2.0)
        outcome = run_plan(planned, folder, executor, listener=events.append, previous=previous, push_to=push_to)
        return SimpleNamespace(
            plan=planned,
            folder=folder.path,
            outcome=outcome,
            events=events,
            did={
                event["step"]: event["event"]
                for event in events
                if event["event"].startswith("step_") and event["event"] != "step_started"
            },
            said=[event["text"] for event in events if event["event"] == "message"],
            log=lambda step: folder.log(step).read_text(),
            artifact=lambda step: (folder.path / "steps" / step).resolve(),
        )

    return SimpleNamespace(plan=plan, start=start, run=run, store=store, runs=runs)


@pytest.fixture
def barrier(tmp_path, monkeypatch):
    """`barrier(name)` makes a worker stop at `name`; `.reached()` waits for that, `.open()` lets it go on.

    Files, and a worker that looks for them: a signal that comes just before a blocking call would not wake it.
    """
    folder = tmp_path / "barriers"
    folder.mkdir()
    monkeypatch.setenv("TOY_BARRIERS", str(folder))

    def make(name):
        place = folder / name
        place.touch()
        here = place.with_suffix(".here")

        def reached():
            deadline = time.monotonic() + 300
            while not here.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            here.unlink()

        return SimpleNamespace(reached=reached, open=place.with_suffix(".go").touch, remove=place.unlink)

    return make


@pytest.fixture
def in_thread():
    """Runs a function in a thread; `.join()` returns its result."""

    def start(function, *arguments, **named):
        box = {}
        thread = threading.Thread(target=lambda: box.update(result=function(*arguments, **named)))
        thread.start()

        def join():
            thread.join(timeout=60)
            assert not thread.is_alive()
            return box["result"]

        return SimpleNamespace(join=join)

    return start


@pytest.fixture
def worker(toy):
    """Starts one worker process, in a group of its own, and returns its Popen."""
    import subprocess

    started = []

    def start(folder, step):
        argv = [sys.executable, "-m", "speculators.pipeline.work", str(folder.path), step]
        process = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
