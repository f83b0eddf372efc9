"""A store that machines share: what is there is not made again, what is needed comes, and nothing else is believed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from speculators.errors import MachineError, StepError, UsageError
from speculators.pipeline.digests import value_sha256
from speculators.pipeline.manifest import Manifest, instance_of
from speculators.pipeline.plan import check_machine
from speculators.pipeline.prune import candidates, remove
from speculators.pipeline.remote import Remote, masked, needs_network
from speculators.pipeline.store import Artifact, Damaged


@pytest.fixture
def shared(tmp_path):
    """The folder that all machines see."""
    return tmp_path / "shared"


@pytest.fixture
def remote(shared):
    """`remote()` opens the remote store as another process would."""
    return lambda: Remote.open(f"file://{shared}")


@pytest.fixture
def first(toy, remote):
    """The first machine, which has made everything and pushed it."""
    run = toy.run(push_to=remote())
    assert run.outcome.exit_code == 0
    return SimpleNamespace(**vars(toy), made=run)


def states(plan):
    return {planned.name: planned.state for planned in plan.steps}


def stored(toy):
    return {path.name.rpartition("-")[0] for path in toy.store.artifacts.iterdir()}


def there(shared, step):
    (folder,) = (shared / "artifacts").glob(f"{step}-*")
    return folder


def payload_file(shared, step, name):
    (file,) = there(shared, step).glob(f"*/{name}")
    return file


def rewrite(path, text):
    path.chmod(0o644)
    path.write_text(text)


def described(shared, step, change):
    """Rewrite an artifact's manifest as somebody who may write there could."""
    place = there(shared, step) / "artifact.json"
    manifest = json.loads(place.read_text())
    change(manifest)
    rewrite(place, json.dumps(manifest))


def consistent(manifest):
    """Make a forged list of files look like a real one."""
    entries = Manifest.decode(json.dumps({**manifest, "files": {}}).encode())
    files = {path: SimpleNamespace(**entry) for path, entry in manifest["files"].items()}
    manifest["instance"] = instance_of(files)
    assert entries.key == value_sha256(manifest["hashed"])


def test_a_second_machine_makes_nothing_and_fetches_only_what_its_report_needs(first, another, remote):
    second = another("second")
    plan = second.plan(remote=remote())
    assert states(plan) == {
        "numbers": "remote", "shards": "remote", "words": "remote", "total": "remote", "report": "run",
    }  # fmt: skip
    assert plan.to_run == ()
    assert set(plan.to_fetch) == {"total"}
    run = second.run(remote=remote())
    assert run.outcome.exit_code == 0
    assert run.did == {"total": "step_cached", "report": "step_finished"}
    assert stored(second) == {"total"}
    assert (run.artifact("total") / "total.txt").read_text() == "6"
    assert [text for text in run.said if text.startswith("fetched 1 B from file://")]
    told = json.loads((run.folder / "plan.json").read_text())
    assert {step["name"]: step["state"] for step in told["steps"]}["total"] == "cached"
    assert states(second.plan())["total"] == "cached"  # without the remote store too


def test_a_step_that_runs_gets_its_inputs_and_not_theirs(first, another, remote):
    second = another("second")
    changed = {"total": {"noise": True}}
    plan = second.plan(changed, remote=remote())
    assert states(plan) == {
        "numbers": "remote", "shards": "remote", "words": "remote", "total": "run", "report": "run",
    }  # fmt: skip
    assert set(plan.to_fetch) == {"shards", "words"}
    run = second.run(changed, remote=remote())
    assert run.did == {
        "shards": "step_cached", "words": "step_cached", "total": "step_finished", "report": "step_finished",
    }  # fmt: skip
    assert stored(second) == {"shards", "words", "total"}


def test_what_was_asked_for_is_fetched_although_nothing_runs(first, another, remote):
    second = another("second")
    assert second.run(until=("shards",), remote=remote()).did == {"shards": "step_cached"}
    assert stored(second) == {"shards"}
    third = another("third")
    assert third.run({"shards": {"factor": 5}}, only=("shards",), remote=remote()).did == {
        "numbers": "step_cached", "shards": "step_finished",
    }  # fmt: skip


def test_a_store_in_memory_serves_as_well(toy, another):
    url = "memory://team/store"
    assert toy.run(push_to=Remote.open(url)).outcome.exit_code == 0
    assert another("second").run(remote=Remote.open(url)).did["total"] == "step_cached"
    assert {manifest.step for manifest in Remote.open(url).all()} == {"numbers", "shards", "words", "total"}


def test_pushing_again_copies_nothing_and_tells_nothing(first, remote, shared):
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    run = first.run(push_to=remote())
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before
    assert not [text for text in run.said if text.startswith("pushed")]


def test_a_push_tells_size_and_time_and_takes_what_was_cached_along(toy, remote, shared):
    toy.run(until=("shards",))
    run = toy.run(push_to=remote())
    pushed = {event["step"]: event["text"] for event in run.events if event.get("text", "").startswith("pushed ")}
    assert pushed["total"].startswith("pushed 1 B to file://")
    assert sorted(pushed) == ["numbers", "shards", "total", "words"]
    assert run.events[-1]["event"] == "run_finished"
    assert len(list((shared / "artifacts").glob("*/artifact.json"))) == 4


def test_what_means_nothing_elsewhere_or_is_let_go_is_neither_pushed_nor_asked_for(
    toy, toy_graph, another, remote, monkeypatch, shared
):
    changes = {"words": {"stays": lambda config: True}, "total": {"releases": ("shards",)}}
    steps = tuple(replace(step, **changes.get(step.name, {})) for step in toy_graph.STEPS)
    toy.run(push_to=remote())
    shutil.rmtree(there(shared, "shards"))
    monkeypatch.setattr(toy_graph, "STEPS", steps)
    shutil.rmtree(there(shared, "numbers"))
    toy.run(push_to=remote())
    assert sorted(path.name.rpartition("-")[0] for path in (shared / "artifacts").iterdir()) == [
        "numbers", "total", "words",
    ]  # fmt: skip
    assert states(another("second").plan(remote=remote()))["words"] == "skipped"


def test_fetched_artifacts_are_read_only_and_found_without_being_read_again(first, another, remote, monkeypatch):
    second = another("second")
    artifact = second.run(until=("words",), remote=remote()).artifact("words")
    assert (artifact / "deep" / "more.txt").stat().st_mode & 0o222 == 0
    monkeypatch.setattr("speculators.pipeline.store.read_sha256", lambda path: pytest.fail(f"read {path}"))
    assert states(second.plan())["words"] == "cached"
    assert not list(second.store.incomings.iterdir())


DAMAGE = {
    "cut short": (lambda file: rewrite(file, ""), "shard-1.txt has 0 bytes instead of 1"),
    "changed": (lambda file: rewrite(file, "9"), "shard-1.txt has changed"),
    "lost": (lambda file: file.unlink(), "shard-1.txt is missing"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "shard-1.txt"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_told_once_never_published_made_here_and_pushed_anew(
    first, another, remote, shared, damage
):
    harm, words = DAMAGE[damage]
    harm(payload_file(shared, "shards", "shard-1.txt"))
    second = another("second")
    opened = remote()
    run = second.run({"total": {"noise": True}}, remote=opened, push_to=opened)
    assert run.outcome.exit_code == 0
    assert run.did["shards"] == "step_finished"
    assert run.did["numbers"] == "step_cached"
    (told,) = [text for text in run.said if "is damaged in the remote store: " in text]
    assert words in told
    assert not list(second.store.incomings.iterdir())
    assert (run.artifact("shards") / "shard-1.txt").read_text() == "2"
    if damage != "a folder":  # what cannot be replaced stays as it is, and the run is not harmed
        assert another("third").run(until=("shards",), remote=remote()).did == {"shards": "step_cached"}


def test_without_its_manifest_an_artifact_is_not_there(first, another, remote, shared):
    (there(shared, "total") / "artifact.json").unlink()
    second = another("second")
    plan = second.plan(remote=remote())
    assert states(plan)["total"] == "run"
    assert set(plan.to_fetch) == {"shards", "words"}
    assert second.run(remote=remote()).did["total"] == "step_finished"


def test_a_manifest_that_names_a_path_outside_or_an_odd_one_is_never_followed(first, another, remote, shared):
    second = another("second")
    before = set(second.store.root.parent.rglob("*"))
    original = (there(shared, "total") / "artifact.json").read_text()
    entry = json.loads(original)["files"]["total.txt"]
    for path in (
        "../out.txt", "/out.txt", "a/../../out.txt", "a//b", ".hidden", "a/.b", "a\\b", "a\nb", "", "artifact.json",
    ):  # fmt: skip

        def forge(manifest, path=path):
            manifest["files"] = {path: entry}
            consistent(manifest)

        described(shared, "total", forge)
        plan = second.plan(remote=remote())
        assert states(plan)["total"] == "run", path
        assert plan["total"].why.text.startswith("damaged in the remote store: artifact.json")
        assert "total" not in {manifest.step for manifest in remote().all()}
    assert {path for path in second.store.root.parent.rglob("*") if "digests" not in path.name} == before
    rewrite(there(shared, "total") / "artifact.json", original)
    assert states(second.plan(remote=remote()))["total"] == "remote"


def test_a_manifest_that_does_not_agree_with_itself_is_not_believed(first, another, remote, shared):
    second, place = another("second"), there(shared, "total") / "artifact.json"
    original = place.read_text()
    for change in (
        {"key": "0" * 64}, {"step": "words"}, {"step": None}, {"hashed": {}}, {"instance": "0" * 32}, {"files": {}},
        {"finished": "yesterday"},
    ):  # fmt: skip
        described(shared, "total", lambda manifest, change=change: manifest.update(change))
        assert states(second.plan(remote=remote()))["total"] == "run", change
        rewrite(place, original)
    rewrite(place, original[:100])
    assert states(second.plan(remote=remote()))["total"] == "run"


def test_files_that_are_folders_too_are_refused(first, another, remote, shared):
    def forge(manifest):
        entry = manifest["files"]["total.txt"]
        manifest["files"] = {"a": entry, "a/b": entry}
        consistent(manifest)

    described(shared, "total", forge)
    assert "a folder too" in another("second").plan(remote=remote())["total"].why.text


def test_a_link_that_lies_where_a_file_is_fetched_to_is_not_followed(first, another, remote, tmp_path):
    second = another("second")
    outside = tmp_path / "outside"
    outside.write_text("kept")
    incoming = second.store.incoming(second.plan()["total"].id)
    (incoming / "total.txt").symlink_to(outside)
    (incoming / "left.txt").write_text("from an older attempt")
    run = second.run(remote=remote())
    assert run.did["total"] == "step_cached"
    assert outside.read_text() == "kept"
    assert {path.name for path in run.artifact("total").iterdir()} == {"artifact.json", "total.txt"}


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


def test_a_forced_step_runs_although_it_is_there_and_what_is_there_stays(first, another, remote, shared):
    before = (there(shared, "shards") / "artifact.json").read_text()
    second = another("second")
    run = second.run(force=("shards",), remote=remote(), push_to=remote())
    assert run.did["numbers"] == "step_cached"
    assert run.did["shards"] == "step_finished"
    assert run.did["total"] == "step_finished"
    assert (there(shared, "shards") / "artifact.json").read_text() == before


def test_what_was_made_from_other_inputs_than_are_here_is_not_used(toy, another, remote):
    data = {"total": {"noise": True}}
    toy.run(data, push_to=remote())
    second = another("second")
    second.run(data, until=("shards",))
    assert states(second.plan(data, remote=remote()))["total"] == "remote"  # the same bytes came out
    manifest = second.store.history("shards")[0].path / "artifact.json"
    rewrite(manifest, manifest.read_text().replace(second.store.history("shards")[0].manifest.instance, "0" * 32))
    plan = second.plan(data, remote=remote())
    assert states(plan)["total"] == "run"
    assert plan["total"].why.text == "the remote store's was made from another shards"


def test_what_is_here_is_not_put_in_doubt_by_what_is_there(first, another, remote):
    second = another("second")
    second.run()
    total = second.store.history("total")[0]
    rewrite(
        total.path / "artifact.json",
        (total.path / "artifact.json").read_text().replace(total.manifest.instances["shards"], "0" * 32),
    )
    second.store.discard(second.store.history("shards")[0].path.name)
    plan = second.plan(remote=remote())
    assert states(plan) == {
        "numbers": "cached", "shards": "skipped", "words": "cached", "total": "cached", "report": "run",
    }  # fmt: skip
    wanted = second.plan(until=("shards",), remote=remote())
    assert wanted["shards"].why.text == "the remote store's is not the one that total was made from"
    assert states(second.plan(force=("total",), remote=remote()))["shards"] == "remote"


def test_what_is_damaged_here_is_fetched_in_its_place(first, remote):
    artifact = first.store.history("shards")[0]
    rewrite(artifact.path / "shard-1.txt", "9")
    run = first.run({"total": {"noise": True}}, remote=remote())
    assert run.did["shards"] == "step_cached"
    assert (artifact.path / "shard-1.txt").read_text() == "2"


def test_unfinished_work_of_ones_own_is_not_touched_by_a_pull(first, another, remote):
    second = another("second")
    plan = second.plan()
    (second.store.partial(plan["total"].id, {}) / "half.txt").write_text("half")
    assert second.run(remote=remote()).did["total"] == "step_cached"
    assert (second.store.partial_path(plan["total"].id) / "half.txt").is_file()


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


def test_more_to_run_than_planned_is_held_against_the_machine_first(first, another, remote, shared):
    rewrite(payload_file(shared, "total", "total.txt"), "7")
    second = another("second")
    data = {"disk": 10**18}
    check_machine(second.plan(data, remote=remote()))
    shutil.rmtree(there(shared, "shards"))
    run = second.run(data, remote=remote())
    assert run.outcome.exit_code == MachineError.exit_code
    assert "of disk" in str(run.outcome.failures[0])
    assert "shards" not in run.did


def test_a_manifest_of_more_than_the_disk_holds_is_told_before_it_is_fetched(first, another, remote, shared):
    def forge(manifest):
        manifest["files"]["total.txt"]["size"] = 10**18

    described(shared, "total", forge)
    with pytest.raises(MachineError, match="of disk"):
        check_machine(another("second").plan(remote=remote()))


@pytest.mark.parametrize(
    "url", ["shared", "/mnt/shared", "s3:bucket", "", "s3://[b", "simplecache::s3://bucket", "no such://x"]
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UsageError, match=r"hf://buckets/ORG/NAME"):
        Remote.open(url)


def test_an_unknown_kind_and_a_missing_package_say_what_to_do(lacking):
    with pytest.raises(UsageError, match="nosuch"):
        Remote.open("nosuch://x/y")
    for scheme, package, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")):
        lacking(scheme, package)
        with pytest.raises(MachineError, match=rf"--remote {scheme}://b/p needs .*'speculators\[{extra}\]'"):
            Remote.open(f"{scheme}://b/p")


def test_secrets_in_urls_are_never_shown(monkeypatch):
    url = "ftp://me:hunter2@127.0.0.1:1/store?token=abc"
    assert masked(url) == "ftp://***@127.0.0.1:1/store?***"
    assert needs_network(url)
    assert not needs_network("file:///mnt/shared")

    def refuse(*arguments, **named):
        raise OSError(f"no answer from {url} for me:hunter2, hunter2, token=abc")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(MachineError) as told:
        Remote.open(url)
    assert "ftp://***@127.0.0.1:1/store?***" in str(told.value)
    for secret in ("hunter2", "abc"):
        assert secret not in str(told.value)
    assert told.value.__suppress_context__


def test_ray_s_nodes_do_not_get_the_url(monkeypatch):
    from speculators.pipeline.executors.base import Work
    from speculators.pipeline.executors.ray import _with_environment
    from speculators.pipeline.executors.requests import Resources

    monkeypatch.setenv("SPECULATORS_REMOTE", "ftp://me:hunter2@host/")
    monkeypatch.setenv("SPECULATORS_STORE", "/store")
    handed = _with_environment(Work("total", (), Path("log")), Resources()).environment
    assert handed["SPECULATORS_STORE"] == "/store"
    assert "SPECULATORS_REMOTE" not in handed


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


def test_a_damaged_pull_is_a_value_and_not_an_artifact(first, another, remote, shared):
    rewrite(payload_file(shared, "words", "words.txt"), "nope")
    opened = remote()
    (manifest,) = [one for one in opened.all() if one.step == "words"]
    found = opened.pull(manifest, another("second").store, run="r", waiting=print)
    assert found == Damaged(found.path, "words.txt has changed")
