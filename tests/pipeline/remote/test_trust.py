"""What lies in a remote store is held to its digests and to its keys before anything is believed."""

import json
import shutil

import pytest
from remote_stores import consistent, described, payload_file, rewrite, states, there

from speculators.errors import MachineError
from speculators.pipeline.plan import check_machine
from speculators.pipeline.store import Damaged

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


def test_a_damaged_pull_is_a_value_and_not_an_artifact(first, another, remote, shared):
    rewrite(payload_file(shared, "words", "words.txt"), "nope")
    opened = remote()
    (manifest,) = [one for one in opened.all() if one.step == "words"]
    found = opened.pull(manifest, another("second").store, run="r", waiting=print)
    assert found == Damaged(found.path, "words.txt has changed")


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
