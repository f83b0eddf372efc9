"""Where drafts and the tensors that they borrow come from; of the hub, only the files that are needed."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from speculators.checkpoints.source import draft_digest, open_draft, parse_draft_source
from speculators.errors import MachineError, UsageError
from speculators.verifiers.lender import Lender
from speculators.verifiers.weights import VerifierWeights

COMMIT = "c" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with what lies under `remote/ORG/NAME`; `asked` hears of every file that was fetched."""
    from fnmatch import fnmatch

    import huggingface_hub

    remote, cache, asked, revisions = tmp_path / "remote", tmp_path / "cache", [], []

    def snapshot_download(name, revision=None, repo_type="model", allow_patterns=None, local_files_only=False):
        target = cache / name / (revision or "main")
        if local_files_only:
            if not target.is_dir():
                raise FileNotFoundError(name)
            return str(target)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((remote / name).iterdir()):
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns) and not (target / file.name).exists():
                asked.append(file.name)
                shutil.copyfile(file, target / file.name)
        return str(target)

    class Api:
        def repo_info(self, name, revision=None, repo_type="model", timeout=None):
            revisions.append((name, revision))
            return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return SimpleNamespace(remote=remote, asked=asked, revisions=revisions)


def test_a_draft_of_the_hub_is_pinned_and_fetched_without_what_is_not_needed(make_draft, hub):
    folder = make_draft("eagle3").save(hub.remote / "org/draft", pickled=True)
    (folder / "README.md").write_text("a card")
    (folder / "modeling.py").write_text("raise SystemExit")
    source = parse_draft_source("org/draft@v2")
    assert (source.hub, source.revision) == ("org/draft", "v2")
    digest = draft_digest(source)
    assert digest == f"hub:org/draft@{COMMIT}"
    assert hub.revisions == [("org/draft", "v2")]
    foreign = open_draft(source, digest)
    assert foreign.name == f"org/draft at {COMMIT[:12]}"
    assert hub.asked == ["config.json", "pytorch_model.bin"]
    assert torch.equal(foreign.read("d2t"), make_draft("eagle3").tensors["d2t"])


def test_pickled_weights_stay_where_there_are_safetensors(make_draft, hub):
    make_draft("eagle3").save(hub.remote / "org/draft")
    make_draft("eagle3").save(hub.remote / "org/draft", pickled=True)
    open_draft(parse_draft_source("org/draft"), f"hub:org/draft@{COMMIT}")
    assert hub.asked == ["config.json", "model.safetensors"]


def test_tokenizers_of_draft_and_verifier_come_from_the_hub_for_comparison(make_draft, verifier_folder, hub):
    folder = make_draft("eagle3").save(hub.remote / "org/draft")
    (folder / "tokenizer.json").write_text("{}")
    foreign = open_draft(parse_draft_source("org/draft"), f"hub:org/draft@{COMMIT}")
    assert (foreign.directory / "tokenizer.json").is_file()
    large = hub.remote / "org/large"
    large.mkdir(parents=True)
    shutil.copyfile(verifier_folder / "config.json", large / "config.json")
    (large / "tokenizer.json").write_text("{}")
    lender = Lender.of_hub("org/large", COMMIT)
    assert hub.asked[-1] == "config.json"
    assert (lender.tokenizer_directory() / "tokenizer.json").is_file()


def test_of_a_large_verifier_one_shard_is_fetched(verifier_folder, hub):
    folder = hub.remote / "org/large"
    folder.mkdir(parents=True)
    shutil.copyfile(verifier_folder / "config.json", folder / "config.json")
    tensors = load_file(verifier_folder / "model.safetensors")
    files = {name: f"model-{number:05}-of-{len(tensors):05}.safetensors" for number, name in enumerate(tensors, 1)}
    for name, file in files.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    lender = Lender.of_hub("org/large", COMMIT)
    assert hub.asked == ["config.json"]
    embedding = lender.lend("embedding")
    shard = files["model.embed_tokens.weight"]
    assert hub.asked == ["config.json", "model.safetensors.index.json", shard]
    assert torch.equal(embedding, tensors["model.embed_tokens.weight"])


def test_a_folder_lends_what_training_reads_of_it(verifier_folder, lender):
    weights = VerifierWeights.read(verifier_folder)
    assert torch.equal(lender.lend("embedding").float(), weights.embedding)
    assert torch.equal(lender.lend("head").float(), weights.head)


def test_a_quantised_embedding_is_not_lent(verifier_folder, tmp_path):
    folder = tmp_path / "quantised"
    shutil.copytree(verifier_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match="the verifier's embedding is quantised"):
        Lender.of_directory(folder, "q").lend("embedding")


def test_a_single_file_has_its_config_beside_it(make_draft, tmp_path):
    folder = make_draft("eagle3").save(tmp_path / "draft")
    file = folder / "model.safetensors"
    source = parse_draft_source(str(file))
    assert open_draft(source, "").headers == open_draft(parse_draft_source(str(folder)), "").headers
    before = draft_digest(source)
    (folder / "config.json").write_text(json.dumps(make_draft("eagle3", rms_norm_eps=1e-6).config))
    assert draft_digest(source) != before
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"there is no config\.json beside it"):
        open_draft(source, "")


@pytest.mark.parametrize("text", ["no-such-folder", "org/draft@", "https://hub/x", "a/b/c"])
def test_what_is_no_source_is_said_to_be_none(text):
    with pytest.raises(UsageError, match="is neither a folder, nor a weights file, nor a hub id"):
        parse_draft_source(text)


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path):
    with pytest.raises(UsageError, match="there is no "):
        parse_draft_source(str(tmp_path / "gone"))


def test_a_hub_out_of_reach_is_the_machine_s_fault(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError):
        open_draft(parse_draft_source("org/draft"), f"hub:org/draft@{COMMIT}")


@pytest.mark.parametrize("text", ["{bad", "{}"])
def test_a_broken_index_of_a_verifier_on_the_hub_is_said_to_be_broken(text, verifier_folder, hub):
    shutil.copytree(verifier_folder, hub.remote / "org/large")
    (hub.remote / "org/large" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UsageError, match=r"model\.safetensors\.index\.json (is not valid JSON|has no `weight_map`)"):
        open_draft(parse_draft_source("org/large"), f"hub:org/large@{COMMIT}", "mtp")


def with_other_weights(draft, folder, *, is_indexed):
    """A folder whose index names its file, with the same weights once more under another project's names."""
    draft.save(folder)
    index = {"weight_map": dict.fromkeys(draft.tensors, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    if is_indexed:
        other = {"weight_map": {"layers.0.attention.wq.weight": "consolidated.safetensors"}}
        (folder / "consolidated.safetensors.index.json").write_text(json.dumps(other))
    return folder


@pytest.mark.parametrize("is_indexed", [True, False])
def test_files_that_the_index_does_not_name_are_neither_read_nor_fetched(is_indexed, make_draft, hub, tmp_path):
    draft = make_draft("eagle3")
    folder = with_other_weights(draft, tmp_path / "here", is_indexed=is_indexed)
    assert set(open_draft(parse_draft_source(str(folder)), "").headers) == set(draft.tensors)
    with_other_weights(draft, hub.remote / "org/draft", is_indexed=is_indexed)
    foreign = open_draft(parse_draft_source("org/draft"), f"hub:org/draft@{COMMIT}")
    assert set(foreign.headers) == set(draft.tensors)
    assert "model.safetensors" in hub.asked
    assert "consolidated.safetensors" not in hub.asked
