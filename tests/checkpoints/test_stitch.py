"""A head read from a verifier and written back changes not a bit; a trained one changes its own bytes and no others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import native_heads
import pytest
import torch
from native_heads import INNER, LAYERS, H, V
from safetensors.torch import load_file, save_file

from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.native import read_head
from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.load import load_draft, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.checkpoints.stitch import stitch
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights


@pytest.fixture(params=native_heads.KINDS)
def verifier(request: pytest.FixtureRequest, tmp_path: Path) -> SimpleNamespace:
    """A sharded checkpoint whose head lies in its first file, beside other tensors."""
    directory = tmp_path / "verifier"
    directory.mkdir()
    embedding = torch.randn(V, H).bfloat16()
    body = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": torch.rand(H).bfloat16(),
        "lm_head.weight": torch.randn(V, H).bfloat16(),
        "model.layers.0.mlp.up_proj.weight": torch.randn(INNER, H).bfloat16(),
    }
    head = native_heads.tensors(request.param)
    if native_heads.has_copies(request.param):
        head[f"model.layers.{LAYERS}.embed_tokens.weight"] = embedding.clone()
        head[f"model.layers.{LAYERS}.shared_head.head.weight"] = body["lm_head.weight"].clone()
    shared = {"model.layers.1.mlp.up_proj.weight": torch.randn(INNER, H).bfloat16(), **head}
    save_file(shared, directory / "model-00001-of-00002.safetensors", metadata={"format": "pt", "made": "by a test"})
    save_file(body, directory / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    index = dict.fromkeys(shared, "model-00001-of-00002.safetensors")
    index |= dict.fromkeys(body, "model-00002-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (directory / "config.json").write_text(json.dumps(native_heads.config(request.param)))
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "vocab.txt").write_text("a b c")
    return SimpleNamespace(directory=directory, style=native_heads.style_of(request.param), head=head)


def extracted(directory: Path, target: Path, dtype: str = "bfloat16", change: Any = None) -> Path:
    """The verifier's head as a checkpoint of ours."""
    facts = VerifierFacts.from_directory(directory)
    promised = MtpConfig.for_verifier(facts, None, draft_vocab_size=facts.vocab_size, aux_layers=(facts.layers,))
    config, tensors = read_head(promised, VerifierWeights.read(directory))
    if change is not None:
        tensors = {name: change(tensor) for name, tensor in tensors.items()}
    name = VerifierName(str(directory.resolve()), facts.architectures)
    write_checkpoint(target, speculators_config(config.to_config_json(), name, 3, dtype), tensors)
    return target


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_head_read_and_written_back_leaves_every_file_as_it_was(
    verifier: SimpleNamespace, tmp_path: Path, dtype: str
) -> None:
    checkpoint = extracted(verifier.directory, tmp_path / "draft", dtype)
    assert check_checkpoint(checkpoint) == []
    assert load_draft(checkpoint).config.style == verifier.style
    stitch(checkpoint, verifier.directory, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(verifier.directory)


def test_only_the_heads_own_bytes_change(verifier: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = extracted(verifier.directory, tmp_path / "draft", change=lambda tensor: tensor + 1)
    before, done = contents(verifier.directory), stitch(checkpoint, verifier.directory, tmp_path / "out")
    assert contents(verifier.directory) == before
    assert done.changed == ("model-00001-of-00002.safetensors",)
    assert done.linked == ("model-00002-of-00002.safetensors",)
    own, other = (load_file(where / done.changed[0]) for where in (tmp_path / "out", verifier.directory))
    changed = {name for name in own if not torch.equal(own[name], other[name])}
    copies = {name for name in verifier.head if name.endswith(("embed_tokens.weight", "shared_head.head.weight"))}
    assert changed == set(verifier.head) - copies == set(done.tensors)
    assert all(torch.equal(own[name], other[name] + 1) for name in changed)
    differing = [name for name, content in contents(tmp_path / "out").items() if content != before[name]]
    assert differing == list(done.changed)


def test_a_passing_copy_is_symbolic_links_but_for_what_changes(verifier: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = extracted(verifier.directory, tmp_path / "draft")
    done = stitch(checkpoint, verifier.directory, tmp_path / "out", symbolic=True)
    assert [name for name in done.linked if not (tmp_path / "out" / name).is_symlink()] == []
    assert contents(tmp_path / "out") == contents(verifier.directory)


def test_nothing_is_ever_written_over(verifier: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = extracted(verifier.directory, tmp_path / "draft")
    with pytest.raises(UsageError, match="exists already"):
        stitch(checkpoint, verifier.directory, verifier.directory)


def test_a_refusal_while_writing_leaves_nothing_behind(verifier: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = extracted(verifier.directory, tmp_path / "draft")
    file = verifier.directory / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    quantized = next(name for name in verifier.head if name.endswith("up_proj.weight"))
    tensors[quantized] = tensors[quantized].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="a quantized head cannot be written back"):
        stitch(checkpoint, verifier.directory, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_head_of_another_verifier_is_refused_by_name(verifier: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = extracted(verifier.directory, tmp_path / "draft")
    found = read_checkpoint(checkpoint)
    tensors = {name: tensor for name, tensor in found.tensors.items() if "input_proj" not in name}
    tensors["mtp_layers.0.input_proj.weight"] = torch.zeros(H, H)
    write_checkpoint(checkpoint, found.config, tensors)
    with pytest.raises(UsageError, match=r"input_proj.weight is \[16, 16\], .* is \[16, 32\]"):
        stitch(checkpoint, verifier.directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verifier", ["glm"], indirect=True)
def test_a_head_with_an_embedding_of_its_own_is_refused(verifier: SimpleNamespace, tmp_path: Path) -> None:
    file = verifier.directory / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    tensors[f"model.layers.{LAYERS}.embed_tokens.weight"] += 1
    save_file(tensors, file)
    with pytest.raises(UsageError, match="is not the verifier's own"):
        extracted(verifier.directory, tmp_path / "draft")
