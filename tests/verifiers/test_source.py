"""A verifier is found where the recipe says, pinned by a digest, and written once."""

import json
import shutil

import pytest

from speculators.errors import MachineError, UsageError
from speculators.pipeline.digests import file_sha256
from speculators.verifiers.hub import resolve_commit
from speculators.verifiers.source import (
    external_digest,
    known_facts,
    obtain,
    parse_source,
    read_verifier,
    tree_sha256,
    verifier_directory,
)

WHEEL = "wheel://some-model==1.0/model.gguf"


def test_each_way_to_name_a_model_is_told_apart(tmp_path, verifier_section):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    named = {
        "hub": verifier_section(model="Qwen/Qwen3-8B"),
        "directory": verifier_section(model=str(tmp_path)),
        "gguf": verifier_section(model=str(tmp_path / "model.gguf")),
        "wheel": verifier_section(model=WHEEL, sha256="0" * 64),
    }
    assert {kind: parse_source(section).kind for kind, section in named.items()} == {kind: kind for kind in named}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "names no model"),
        ({"model": WHEEL}, r"`verifier\.sha256` is missing"),
        ({"model": "wheel://some-model/model.gguf", "sha256": "0"}, "is written wheel://DISTRIBUTION==VERSION/"),
        ({"model": "/nowhere/model.gguf"}, r"there is no file /nowhere/model\.gguf"),
        ({"model": "/nowhere"}, "there is no directory /nowhere"),
        ({"model": "https://example.com/model"}, "neither a directory, nor a .gguf file"),
    ],
)
def test_a_model_that_cannot_be_meant_is_explained(verifier_section, changes, message):
    with pytest.raises(UsageError, match=message):
        parse_source(verifier_section(**changes))


def test_random_weights_need_no_pin(verifier_section, shape):
    assert external_digest(verifier_section(random=shape)) is None


def test_a_wheel_is_pinned_by_the_recipe_without_being_fetched(verifier_section):
    assert external_digest(verifier_section(model=WHEEL, sha256="AB" * 32)) == "sha256:" + "ab" * 32


def test_a_directory_is_pinned_by_names_and_contents_wherever_it_lies(tiny, tmp_path, verifier_section):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert external_digest(verifier_section(model=str(copy))) == external_digest(verifier_section(model=str(tiny)))
    before = tree_sha256(copy)
    with (copy / "generation_config.json").open("a") as file:
        file.write(" ")
    assert tree_sha256(copy) != before


def test_a_gguf_other_than_the_pinned_one_is_refused(tmp_path, verifier_section):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert external_digest(verifier_section(model=str(file), sha256=file_sha256(file)))
    with pytest.raises(UsageError, match=r"`verifier\.sha256` pins 00"):
        external_digest(verifier_section(model=str(file), sha256="0" * 64))


def test_a_file_that_is_no_gguf_is_named(tmp_path, verifier_section):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"something else")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        obtain(verifier_section(model=str(file)), tmp_path)


def test_a_directory_is_used_where_it_lies(tiny, tmp_path, verifier_section):
    obtain(verifier_section(model=str(tiny)), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["verifier.json"]
    assert verifier_directory(tmp_path) == tiny
    assert read_verifier(tmp_path).digest == f"tree:{tree_sha256(tiny)}"


def test_a_directory_that_has_gone_is_named_by_those_who_need_it(tiny, tmp_path, verifier_section):
    moved, artifact = tmp_path / "moved", tmp_path / "artifact"
    shutil.copytree(tiny, moved)
    artifact.mkdir()
    obtain(verifier_section(model=str(moved)), artifact)
    shutil.rmtree(moved)
    with pytest.raises(UsageError, match="is no longer at"):
        verifier_directory(artifact)


def test_a_directory_with_pickled_weights_only_is_refused(tiny, tmp_path, verifier_section):
    pickled, artifact = tmp_path / "pickled", tmp_path / "artifact"
    shutil.copytree(tiny, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    (pickled / "pytorch_model.bin").write_bytes(b"")
    artifact.mkdir()
    with pytest.raises(UsageError, match="pickled weights are not read"):
        obtain(verifier_section(model=str(pickled)), artifact)


def test_random_weights_are_the_same_bytes_each_time(tmp_path, shape, verifier_section):
    digests = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        obtain(verifier_section(random=shape), tmp_path / name)
        digests.append(read_verifier(tmp_path / name).digest)
    assert digests[0] == digests[1]


def test_a_half_written_checkpoint_is_thrown_away_and_a_whole_one_kept(tmp_path, shape, verifier_section):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "model.safetensors").write_bytes(b"half")
    obtain(verifier_section(random=shape), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "verifier.json"]
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    obtain(verifier_section(random=shape), tmp_path)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written


def test_facts_are_known_as_early_as_they_can_be(tiny, tmp_path, shape, verifier_section):
    assert known_facts(verifier_section(random=shape)) == known_facts(verifier_section(model=str(tiny)))
    wheel = verifier_section(model=WHEEL, sha256="0" * 64)
    assert known_facts(wheel) is None
    (tmp_path / "verifier.json").write_text(
        json.dumps({"source": WHEEL, "digest": "sha256:0", "location": {"directory": str(tiny)}})
    )
    assert known_facts(wheel, tmp_path) == known_facts(verifier_section(random=shape))


def test_a_full_commit_needs_no_hub():
    assert resolve_commit("some/model", "0" * 40) == "0" * 40


def test_an_unreachable_hub_says_what_to_use_instead(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        MachineError, match=r"the model no-such/model is not in its local cache .*use a directory, a \.gguf file"
    ):
        resolve_commit("no-such/model", None)
