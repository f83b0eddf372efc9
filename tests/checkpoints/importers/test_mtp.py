"""A verifier's own head, taken out of its checkpoint: the bits that training starts from, and stitched back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import native_heads
import pytest
import torch
from native_heads import INNER, LAYERS, H, V
from safetensors.torch import load_file, save_file

from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.native import read_head
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.convert import convert
from speculators.checkpoints.describe import describe
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import load_draft, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.checkpoints.source import open_draft, parse_draft_source
from speculators.checkpoints.stitch import stitch
from speculators.errors import UsageError
from speculators.verifiers.lender import Lender
from speculators.verifiers.weights import VerifierWeights

LAST = f"model.layers.{LAYERS}"
HEAD_FILE, BODY_FILE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(params=native_heads.KINDS)
def verifier(request: pytest.FixtureRequest, tmp_path: Path) -> SimpleNamespace:
    """A verifier in two files, one of which has the head."""
    directory = tmp_path / "verifier"
    directory.mkdir()
    body = {
        "model.embed_tokens.weight": torch.randn(V, H).bfloat16(),
        "model.norm.weight": torch.rand(H).bfloat16(),
        "lm_head.weight": torch.randn(V, H).bfloat16(),
        "model.layers.0.mlp.up_proj.weight": torch.randn(INNER, H).bfloat16(),
    }
    head = native_heads.tensors(request.param)
    if native_heads.has_copies(request.param):
        head[f"{LAST}.embed_tokens.weight"] = body["model.embed_tokens.weight"].clone()
        head[f"{LAST}.shared_head.head.weight"] = body["lm_head.weight"].clone()
    save_file(head, directory / HEAD_FILE, metadata={"format": "pt"})
    save_file(body, directory / BODY_FILE, metadata={"format": "pt"})
    index = dict.fromkeys(head, HEAD_FILE) | dict.fromkeys(body, BODY_FILE)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = native_heads.config(request.param)
    (directory / "config.json").write_text(json.dumps(config))
    return SimpleNamespace(directory=directory, style=native_heads.style_of(request.param), head=head, config=config)


def opened(verifier: SimpleNamespace) -> tuple[Foreign, Lender]:
    return Foreign.open(verifier.directory, "verifier"), Lender.of_directory(
        verifier.directory, str(verifier.directory)
    )


def test_the_head_is_what_training_starts_from_and_goes_back_bit_for_bit(verifier, tmp_path):
    foreign, lender = opened(verifier)
    converted = convert(foreign, lender)
    promised = MtpConfig.for_verifier(lender.facts, None, draft_vocab_size=V, aux_layers=(LAYERS,))
    config, tensors = read_head(promised, VerifierWeights.read(verifier.directory))
    assert {key: value for key, value in converted.draft.items() if key != "converted_from"} == config.to_config_json()
    assert converted.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert converted.tensors[name].dtype == value.dtype
        assert torch.equal(converted.tensors[name], value)
    assert "4 other tensors are the verifier's own, and stay there" in converted.summary
    name = VerifierName(lender.name, lender.facts.architectures)
    folder = tmp_path / "ours"
    write_checkpoint(folder, speculators_config(converted.draft, name, 3, converted.dtype), converted.tensors)
    assert check_checkpoint(folder) == []
    assert load_draft(read_checkpoint(folder)).config.style == verifier.style
    stitch(folder, verifier.directory, tmp_path / "out")
    for file in verifier.directory.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_verifier_with_a_head_is_told_as_one(verifier):
    told = describe(opened(verifier)[0])
    assert told.format == "mtp"
    assert told.because[0].startswith("it holds a multi-token-prediction head (")
    assert told.problems == ("it is a verifier: vLLM serves it, head and all, with --speculative-config's method mtp",)


def test_another_verifier_s_head_is_refused(verifier, tmp_path):
    foreign, _ = opened(verifier)
    other = tmp_path / "other"
    shutil.copytree(verifier.directory, other)
    (other / "config.json").write_text(json.dumps({**verifier.config, "num_hidden_layers": 5}))
    with pytest.raises(UsageError, match="another model than the verifier: its layers is 2, the verifier's is 5"):
        convert(foreign, Lender.of_directory(other, "other"))


@pytest.mark.parametrize("verifier", ["glm"], indirect=True)
def test_a_head_with_an_embedding_of_its_own_is_refused(verifier):
    tensors = load_file(verifier.directory / HEAD_FILE)
    tensors[f"{LAST}.embed_tokens.weight"] += 1
    save_file(tensors, verifier.directory / HEAD_FILE)
    with pytest.raises(UsageError, match=r"embed_tokens\.weight is not the embedding of"):
        convert(*opened(verifier))


@pytest.mark.parametrize("verifier", ["qwen"], indirect=True)
def test_a_head_of_experts_joined_in_one_tensor_is_refused_by_name(verifier):
    tensors = load_file(verifier.directory / HEAD_FILE)
    tensors["mtp.layers.0.mlp.experts.gate_up_proj"] = torch.zeros(2, INNER, H)
    save_file(tensors, verifier.directory / HEAD_FILE)
    index = json.loads((verifier.directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["mtp.layers.0.mlp.experts.gate_up_proj"] = HEAD_FILE
    (verifier.directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"the multi-token-prediction head has mtp\.layers\.0\.mlp\.experts\.gate_up"):
        convert(*opened(verifier))


@pytest.mark.parametrize("verifier", ["glm with experts"], indirect=True)
def test_experts_without_a_word_on_how_many_are_met_are_refused(verifier):
    config = {key: value for key, value in verifier.config.items() if key != "num_experts_per_tok"}
    (verifier.directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"its config\.json does not say how many of them a token meets"):
        convert(*opened(verifier))


@pytest.mark.parametrize(
    ("verifier", "change", "said"),
    [
        (
            "glm",
            {f"{LAST}.self_attn.o_proj.bias": torch.zeros(H)},
            r"o_proj.bias there is \[16\]; .* none",
        ),
        (
            "glm with experts",
            {f"{LAST}.mlp.gate.weight": torch.zeros(4, H)},
            r"\.3\.down_proj.*is none;",
        ),
        (
            "deepseek",
            {f"{LAST}.self_attn.kv_b_proj.weight": torch.zeros(10, 6)},
            r"kv_b_proj.weight there is \[10, 6\]; .* make it \[48, 6\]",
        ),
    ],
    indirect=["verifier"],
)
def test_a_head_that_is_not_what_its_config_makes_it_is_told_before_anything_is_trained(verifier, change, said):
    save_file({**load_file(verifier.directory / HEAD_FILE), **change}, verifier.directory / HEAD_FILE)
    facts = opened(verifier)[1].facts
    promised = MtpConfig.for_verifier(facts, None, draft_vocab_size=V, aux_layers=())
    with pytest.raises(UsageError, match=said):
        read_head(promised, VerifierWeights.read(verifier.directory))


def test_of_a_verifier_on_the_hub_only_the_files_with_the_head_are_fetched(verifier, monkeypatch, tmp_path):
    asked: list[str] = []

    def fetch_files(name, commit, patterns):
        cache = tmp_path / "cache"
        cache.mkdir(exist_ok=True)
        for pattern in patterns:
            for file in verifier.directory.glob(pattern):
                if not (cache / file.name).exists():
                    asked.append(file.name)
                    shutil.copyfile(file, cache / file.name)
        return cache

    monkeypatch.setattr("speculators.checkpoints.source.fetch_files", fetch_files)
    foreign = open_draft(parse_draft_source("org/verifier"), f"hub:org/verifier@{'c' * 40}", "mtp")
    assert asked == ["config.json", "model.safetensors.index.json", HEAD_FILE]
    assert set(foreign.headers) == set(verifier.head)
    _, lender = opened(verifier)
    assert convert(foreign, lender).found.translation.notices == ()
