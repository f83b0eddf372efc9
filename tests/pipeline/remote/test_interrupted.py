"""Transfers that are killed, that race, or whose network fails: nothing looks whole that is not."""

import os
import signal
import subprocess
import sys

import pytest
from remote_stores import states, stored

from speculators.errors import MachineError, StepError
from speculators.pipeline.prune import candidates, remove
from speculators.pipeline.remote import Remote
from speculators.pipeline.store import Artifact

KILLED = """
import os, sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from speculators.pipeline.remote import Remote
from speculators.pipeline.store import Store

store, remote = Store.open(Path(sys.argv[1])), Remote.open(sys.argv[2])
whole, left = LocalFileSystem.cp_file, [int(sys.argv[4])]

def copy(self, source, target, **kwargs):
    left[0] -= 1
    if left[0] < 0:
        self.makedirs(self._parent(target), exist_ok=True)
        Path(target).write_bytes(Path(source).read_bytes()[:1])
        os.kill(os.getpid(), 9)
    whole(self, source, target, **kwargs)

LocalFileSystem.cp_file = copy
remote._at_once = 1
if sys.argv[3] == "push":
    remote.push(next(store.all()))
else:
    remote.pull(remote.all()[0], store, run="r", waiting=print)
"""


def killed(store, url, what, after):
    argv = [sys.executable, "-c", KILLED, str(store.root), url, what, str(after)]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", [0, 1, 2])
def test_killing_a_push_leaves_no_artifact_there_and_the_next_one_completes_it(toy, another, remote, shared, after):
    toy.run(until=("words",))
    killed(toy.store, f"file://{shared}", "push", after)
    assert not list(shared.rglob("artifact.json"))
    assert states(another("second").plan(remote=remote()))["words"] == "run"
    kept = {path: path.stat().st_mtime_ns for path in shared.rglob("*.txt")}
    assert len(kept) == min(after, 2)
    toy.run(until=("words",), push_to=remote())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert another("third").run(until=("words",), remote=remote()).did == {"words": "step_cached"}


@pytest.mark.parametrize("after", [0, 1])
def test_killing_a_pull_leaves_nothing_that_looks_whole_and_the_next_one_goes_on(
    toy, another, remote, shared, after, monkeypatch
):
    toy.run(until=("words",), push_to=remote())
    second = another("second")
    killed(second.store, f"file://{shared}", "pull", after)
    assert stored(second) == set()
    assert len(list(second.store.incomings.rglob("*.txt"))) == after + 1
    copied = []
    from fsspec.implementations.local import LocalFileSystem

    whole = LocalFileSystem.get_file
    monkeypatch.setattr(
        LocalFileSystem, "get_file", lambda self, *a, **k: (copied.append(a[0]), whole(self, *a, **k))[1]
    )
    assert second.run(until=("words",), remote=remote()).did == {"words": "step_cached"}
    assert len(copied) == 2 - after
    assert stored(second) == {"words"}


def test_what_was_half_fetched_can_be_pruned(toy, another, remote, shared):
    toy.run(until=("words",), push_to=remote())
    second = another("second")
    killed(second.store, f"file://{shared}", "pull", 1)
    found = candidates(second.store)
    assert [(one.step, one.partial) for one in found] == [("words", True)]
    remove(second.store, found)
    assert not list(second.store.incomings.iterdir())


def test_two_that_push_different_results_of_the_same_work_at_once_leave_a_whole_one(
    toy, another, remote, shared, monkeypatch
):
    data = {"total": {"noise": True}}
    toy.run(data)
    second = another("second")
    second.run(data)
    ours, theirs = (one.store.history("total")[0] for one in (toy, second))
    assert ours.manifest.instance != theirs.manifest.instance
    pushing, hurried = remote(), remote()
    whole = Remote._put

    def interleaved(self, source, target, moved):
        whole(self, source, target, moved)
        if self is pushing and source.name == "total.txt":
            assert hurried.push(theirs)

    monkeypatch.setattr(Remote, "_put", interleaved)
    assert pushing.push(ours)
    assert not remote().push(theirs)
    (left,) = remote().all()
    third = another("third")
    assert isinstance(remote().pull(left, third.store, run="r", waiting=print), Artifact)


def test_two_that_push_the_same_bytes_at_once_both_succeed(toy, another, remote, in_thread):
    toy.run()
    artifacts = list(toy.store.all())
    opened = [remote(), remote()]
    threads = [in_thread(lambda one=one: [one.push(artifact) for artifact in artifacts]) for one in opened]
    assert all(len(thread.join()) == len(artifacts) for thread in threads)
    assert another("second").run(remote=remote()).did["total"] == "step_cached"


def test_an_artifact_that_is_made_again_while_it_is_pushed_is_not_left_there(toy, remote, shared, monkeypatch):
    toy.run()
    artifact = toy.store.history("total")[0]
    whole = Remote._put

    def pruned(self, source, target, moved):
        whole(self, source, target, moved)
        toy.store.discard(artifact.path.name)

    monkeypatch.setattr(Remote, "_put", pruned)
    with pytest.raises(StepError, match="removed or made again"):
        remote().push(artifact)
    assert not list(shared.rglob("artifact.json"))


def test_two_runs_that_fetch_the_same_do_it_once(first, another, remote, in_thread, monkeypatch):
    second = another("second")
    fetched = []
    whole = Remote._fetch
    monkeypatch.setattr(Remote, "_fetch", lambda self, *a: (fetched.append(a[-1][0]), whole(self, *a))[1])
    (manifest,) = [one for one in remote().all() if one.step == "words"]
    opened = [remote(), remote()]
    threads = [in_thread(lambda one=one: one.pull(manifest, second.store, run="r", waiting=str)) for one in opened]
    assert all(isinstance(thread.join(), Artifact) for thread in threads)
    assert sorted(fetched) == ["deep/more.txt", "words.txt"]


def test_a_network_that_fails_while_fetching_ends_the_run_before_any_work(first, another, remote, monkeypatch):
    def cut(self, *arguments, **named):
        raise ConnectionResetError("the line is down")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.get_file", cut)
    run = another("second").run({"total": {"noise": True}}, remote=remote())
    assert run.outcome.exit_code == MachineError.exit_code
    assert "could not be fetched: the line is down" in str(run.outcome.failures[0])
    assert not run.did


def test_a_push_that_fails_is_told_once_and_does_not_fail_the_run(toy, remote, monkeypatch):
    def refuse(self, *arguments, **named):
        raise PermissionError("you may only read")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", refuse)
    run = toy.run(push_to=remote())
    assert run.outcome.exit_code == 0
    (told,) = [text for text in run.said if "could not be pushed" in text]
    assert "you may only read; `speculators cache push --remote file://" in told
    assert all(f"{step}-" in told for step in ("numbers", "shards", "words", "total"))


def test_an_artifact_that_cannot_be_pushed_does_not_keep_back_the_others(toy, remote, shared, toy_graph, monkeypatch):
    whole = Remote.push

    def odd(self, artifact, moved):
        if artifact.manifest.step == "numbers":
            raise StepError("numbers has an odd name")
        return whole(self, artifact, moved)

    monkeypatch.setattr(Remote, "push", odd)
    run = toy.run(push_to=remote())
    assert len(list((shared / "artifacts").glob("*/artifact.json"))) == 3
    assert [text for text in run.said if text.startswith("numbers has an odd name; `speculators cache push")]


def test_an_interrupted_fetch_ends_the_run_with_130_and_is_gone_on_with(first, another, remote, monkeypatch):
    whole = Remote._fetch

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        moved = arguments[2]
        while True:
            moved(0)  # as a library does with every block

    monkeypatch.setattr(Remote, "_fetch", interrupted)
    second = another("second")
    run = second.run(remote=remote())
    assert run.outcome.exit_code == 130
    assert stored(second) == set()
    monkeypatch.setattr(Remote, "_fetch", whole)
    assert second.run(remote=remote()).did["total"] == "step_cached"
