"""The store: what is published is whole, what is not whole is not found, and names stay inside it."""

import json
import os

import pytest

from speculators.errors import StepError, UsageError
from speculators.pipeline.digests import FileDigests, canonical, file_sha256, remembering, value_sha256
from speculators.pipeline.manifest import Manifest, artifact_id, folder_name, parse_id
from speculators.pipeline.prune import candidates, chosen, remove
from speculators.pipeline.store import Artifact, Damaged, Store

KEY = "ab" * 32


def put(store, name="tokens", key=KEY, files=None, finished="2026-01-01T00:00:00.000Z"):
    partial = store.partial(artifact_id(name, key), {})
    for path, text in (files or {"a.txt": "hello", "deep/b.txt": "world"}).items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        (partial / path).write_text(text)

    def describe(instance, entries):
        return Manifest(
            step=name, key=key, hashed={}, instance=instance, instances={}, files=entries, versions={}, host="here",
            started=finished, finished=finished, seconds=1.0, peak_memory=1, run="r", recipe="toy",
        )  # fmt: skip

    return store.publish(partial, describe)


def rewrite(path, text):
    path.chmod(0o644)
    path.write_text(text)


def test_a_published_artifact_is_found_read_only_and_described(store):
    artifact = put(store)
    found = store.find("tokens", KEY)
    assert isinstance(found, Artifact)
    assert found == artifact
    assert (found.path / "a.txt").stat().st_mode & 0o222 == 0
    manifest = json.loads((found.path / "artifact.json").read_text())
    assert manifest["files"]["deep/b.txt"]["size"] == 5
    assert not list(store.partials.iterdir())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: rewrite(path / "a.txt", "hell"), "a.txt has 4 bytes instead of 5"),
        (lambda path: rewrite(path / "a.txt", "jello"), "a.txt has changed"),
        (lambda path: (path / "a.txt").unlink(), "a.txt is missing"),
        (lambda path: (path / "c.txt").write_text("new"), "c.txt was added"),
        (lambda path: ((path / "a.txt").unlink(), (path / "a.txt").symlink_to("/etc/hostname")), "not a plain file"),
        (lambda path: rewrite(path / "artifact.json", '{"step": "tok'), "artifact.json is damaged"),
        (lambda path: (path / "artifact.json").unlink(), "artifact.json cannot be read"),
        (
            lambda path: rewrite(
                path / "artifact.json", (path / "artifact.json").read_text().replace('"a.txt"', '"../a.txt"')
            ),
            "outside the artifact",
        ),
        (
            lambda path: rewrite(path / "artifact.json", (path / "artifact.json").read_text().replace(KEY, "c" * 64)),
            "another key",
        ),
    ],
)
def test_damage_is_found_by_its_name(store, damage, words):
    artifact = put(store)
    damage(artifact.path)
    found = store.find("tokens", KEY)
    assert isinstance(found, Damaged)
    assert words in found.why


def test_a_hit_reads_no_file_again(store, monkeypatch):
    put(store)
    monkeypatch.setattr("speculators.pipeline.store.read_sha256", lambda path: pytest.fail(f"read {path}"))
    assert isinstance(store.find("tokens", KEY), Artifact)


def test_an_artifact_copied_from_elsewhere_is_read_once_in_full(store, tmp_path):
    import shutil

    put(store)
    other = Store.open(tmp_path / "other")
    shutil.copytree(store.artifacts, other.artifacts, dirs_exist_ok=True)
    assert isinstance(other.find("tokens", KEY), Artifact)
    rewrite(other.artifacts / artifact_id("tokens", KEY) / "a.txt", "jello")
    assert isinstance(other.find("tokens", KEY), Damaged)


def test_damaged_artifacts_are_made_again(toy):
    first = toy.run()
    rewrite(first.artifact("shards") / "shard-1.txt", "9")
    assert toy.plan()["total"].state == "cached"
    planned = toy.plan({"total": {"noise": True}})
    assert planned["shards"].why.text == "damaged: shard-1.txt has changed"
    second = toy.run({"total": {"noise": True}})
    assert second.did["shards"] == "step_finished"
    assert (second.artifact("shards") / "shard-1.txt").read_text() == "2"
    assert not list(toy.store.trash.iterdir())


def test_a_link_in_the_payload_is_refused(store):
    partial = store.partial(artifact_id("tokens", KEY), {})
    (partial / "a").symlink_to("/etc")
    with pytest.raises(StepError, match="a is not a plain file"):
        store.publish(partial, lambda *_: pytest.fail("described"))
    assert not list(store.artifacts.iterdir())


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "-x", "A", "a b", "a\n"])
def test_names_that_could_leave_the_store_are_refused(name):
    with pytest.raises(UsageError):
        folder_name(name)
    with pytest.raises(UsageError):
        parse_id(f"{name}-0123456789abcdef" if name != "" else "../tokens-0123456789abcdef")


def test_a_store_of_another_format_is_refused(tmp_path):
    Store.open(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="format 99"):
        Store.open(tmp_path)


def test_prune_takes_the_longest_unused_first_and_never_what_is_worked_on(store):
    for index, key in enumerate(("a" * 64, "b" * 64, "c" * 64)):
        artifact = put(store, key=key, files={"f": "x" * 100})
        os.utime(artifact.path / "artifact.json", (1000 * index, 1000 * index))
    busy, idle = artifact_id("shards", "d" * 64), artifact_id("shards", "e" * 64)
    (store.partial(busy, {}) / "f").write_text("x" * 100)
    (store.partial(idle, {}) / "f").write_text("x" * 100)
    with store.hold(busy, run="r", waiting=pytest.fail):
        found = candidates(store)
        assert {one.id for one in found if one.partial} == {idle}
        assert [one.id for one in chosen(found, to_size=250)] == ["tokens-" + "a" * 16, "tokens-" + "b" * 16]
        assert [one.id for one in chosen(found, steps=("shards",))] == [idle]
        assert len(chosen(found, older_than=86400.0)) == 3
        remove(store, found)
        assert (store.partials / busy / "f").is_file()
    assert not list(store.artifacts.iterdir())
    assert not (store.partials / idle).exists()


def test_verify_finds_what_stat_cannot_show(store):
    artifact = put(store)
    file = artifact.path / "a.txt"
    before = file.stat()
    rewrite(file, "jello")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert isinstance(store.find("tokens", KEY), Artifact)
    assert store.verify(artifact) == "a.txt has changed"


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "big"
    file.write_text("old")
    os.utime(file, (1, 1))
    with remembering(FileDigests(tmp_path / "d.sqlite")):
        first = file_sha256(file)
        monkeypatch.setattr("speculators.pipeline.digests.read_sha256", lambda path: "read")
        assert file_sha256(file) == first
        file.write_text("new")
        assert file_sha256(file) == "read"


def test_what_one_thread_has_hashed_another_does_not_hash_again(store, in_thread, monkeypatch):
    put(store)
    monkeypatch.setattr("speculators.pipeline.store.read_sha256", lambda path: pytest.fail(f"read {path}"))
    assert isinstance(in_thread(store.find, "tokens", KEY).join(), Artifact)


def test_digests_work_where_sqlite_does_not(tmp_path):
    file = tmp_path / "f"
    file.write_text("x")
    assert FileDigests(tmp_path / "no" / "such" / "folder.sqlite").sha256(file) == file_sha256(file)


def test_the_order_of_keys_never_matters_and_any_value_does():
    assert value_sha256({"a": 1, "b": [1, 2]}) == value_sha256({"b": [1, 2], "a": 1})
    assert value_sha256({"a": 1}) != value_sha256({"a": 2})
    assert canonical({"b": 1.0, "a": None}) == '{"a":null,"b":1.0}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
