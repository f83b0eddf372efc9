"""A store that machines share: what is there is not made again, and what is needed comes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from remote_stores import rewrite, states, stored, there

from speculators.errors import MachineError, UsageError
from speculators.pipeline.remote import Remote, masked, needs_network


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
    assert [text for text in run.said if text.startswith("fetched 1 B of total from file://")]
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
