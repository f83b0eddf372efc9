"""Hydra as its authors release it (`hydra_lm_head.pt`): in, the same proposals, and back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.convert import convert
from speculators.checkpoints.describe import describe
from speculators.checkpoints.exporters import exported, write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import load_draft, proposal_of, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.errors import UsageError
from speculators.verifiers.weights import VerifierWeights

H, V, HEADS, LAYERS = 32, 300, 3, 3


@pytest.fixture
def make(lender, tmp_path):
    """A source on disk, opened; its blocks after the first are one module, and the embedding is the verifier's."""

    def build(change: Any = None, **config: Any) -> Foreign:
        torch.manual_seed(3)
        tensors = {"input_embed_fn.weight": lender.lend("embedding")}
        for head in range(HEADS):
            wide = (head + 2) * H
            for kind in ("linear", "res_connection"):
                tensors[f"hydra_mlp.{head}.0.{kind}.weight"] = torch.randn(H, wide) * 0.2
                tensors[f"hydra_mlp.{head}.0.{kind}.bias"] = torch.randn(H)
            shared = {"weight": torch.randn(H, H) * 0.2, "bias": torch.randn(H)}
            for block in range(1, LAYERS):
                tensors |= {f"hydra_mlp.{head}.{block}.linear.{kind}": one.clone() for kind, one in shared.items()}
            tensors[f"hydra_lm_head.{head}.weight"] = torch.randn(V, H)
            tensors[f"hydra_lm_head.{head}.bias"] = torch.randn(V)
        if change is not None:
            change(tensors)
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        torch.save(tensors, folder / "hydra_lm_head.pt")
        own = {"hydra_num_heads": HEADS, "hydra_num_layers": LAYERS, "hydra_head_arch": "mlp", "grounded_heads": True}
        own |= {"hidden_state_offset": 0, "base_model_name_or_path": "org/verifier", **config}
        (folder / "config.json").write_text(json.dumps(own))
        return Foreign.open(folder, "source")

    return build


def ours(folder: Path, converted: Any, lender: Any) -> Path:
    name = VerifierName(lender.name, lender.facts.architectures)
    tokens = converted.found.translation.speculative_tokens
    write_checkpoint(folder, speculators_config(converted.draft, name, tokens, converted.dtype), converted.tensors)
    assert check_checkpoint(folder) == []
    return folder


def chain(source: Foreign, weights: VerifierWeights, last: torch.Tensor, token: int) -> list[int]:
    """The authors' heads, greedy: each reads the state after the final norm and all tokens so far."""
    t = {name: source.read(name) for name in source.headers}
    x = functional.rms_norm(last, (H,), weights.norm, weights.eps)
    found = []
    for head in range(HEADS):
        x = torch.cat([x, t["input_embed_fn.weight"][token].float()])
        y, block = x, 0
        while f"hydra_mlp.{head}.{block}.linear.weight" in t:
            name = f"hydra_mlp.{head}.{block}."
            residual = y
            if f"{name}res_connection.weight" in t:
                residual = t[f"{name}res_connection.weight"] @ y + t[f"{name}res_connection.bias"]
            y = residual + functional.silu(t[f"{name}linear.weight"] @ y + t[f"{name}linear.bias"])
            block += 1
        token = int((t[f"hydra_lm_head.{head}.weight"] @ y + t[f"hydra_lm_head.{head}.bias"]).argmax())
        found.append(token)
    return found


def test_a_converted_draft_proposes_what_its_source_proposes(make, lender, tmp_path):
    source = make()
    assert describe(source).format == "hydra"
    converted = convert(source, lender)
    assert "input_embed_fn.weight is dropped: it is the verifier's own embedding" in converted.summary
    proposal = proposal_of(load_draft(ours(tmp_path / "ours", converted, lender)))
    weights = VerifierWeights.read(lender.directory)
    for token in range(0, V, 50):
        last = torch.randn(H)
        found = proposal.propose(
            proposal.new_cache(1, 8),
            torch.tensor([0]),
            torch.tensor([[token]]),
            last[None, None],
            [0],
            [1],
            HEADS,
            None,
        )
        assert found[0].tolist() == chain(source, weights, last, token)


def test_a_draft_comes_back_as_it_was(make, lender, tmp_path):
    source = make()
    write_export(read_checkpoint(ours(tmp_path / "ours", convert(source, lender), lender)), "hydra", tmp_path / "back")
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == ["config.json", "hydra_lm_head.pt"]
    back = Foreign.open(tmp_path / "back")
    assert back.config == source.config
    assert set(back.headers) == set(source.headers)
    assert all(torch.equal(back.read(name), source.read(name)) for name in source.headers)


def test_a_draft_without_biases_gets_biases_of_zero(make, lender, tmp_path):
    converted = convert(
        make(
            lambda t: (
                [t.pop(name) for name in list(t) if name.endswith("head.0.bias")]
                + [t.pop(f"hydra_lm_head.{head}.bias") for head in (1, 2)]
            )
        ),
        lender,
    )
    assert converted.draft["head_bias"] is False
    plain = {key: value for key, value in converted.draft.items() if key != "converted_from"}
    config = speculators_config(plain, VerifierName(lender.name, ()), HEADS, "float32")
    write_checkpoint(tmp_path / "ours", config, converted.tensors)
    write_export(read_checkpoint(tmp_path / "ours"), "hydra", tmp_path / "theirs")
    theirs = Foreign.open(tmp_path / "theirs")
    assert not theirs.read("hydra_lm_head.2.bias").any()
    again = convert(theirs, lender)
    assert all(torch.equal(value, again.tensors[name]) for name, value in converted.tensors.items())


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (None, {"hydra_head_arch": "prefix-mlp"}, "heads of the kind 'prefix-mlp'; of Hydra's, `mlp` is what"),
        (None, {"grounded_heads": False}, "heads that read no tokens"),
        (None, {"hidden_state_offset": 1}, r"states 1 layers before the last \(hidden_state_offset\)"),
        (None, {"hydra_num_heads": 4}, "says hydra_num_heads 4, and its tensors are those of 3"),
        (lambda t: t.update(more=torch.zeros(2)), {}, "holds more, which a Hydra draft"),
        (lambda t: t.pop("hydra_mlp.1.0.linear.bias"), {}, r"lacks blocks\.1\.layers\.0\.bias"),
        (
            lambda t: t.update({"input_embed_fn.weight": t["input_embed_fn.weight"] + 1}),
            {},
            r"input_embed_fn\.weight is not the embedding of",
        ),
        (
            lambda t: t.update({"hydra_lm_head.0.weight": torch.zeros(V + 1, H)}),
            {},
            r"hydra_lm_head\.0\.weight has the shape \[301, 32\]; config and verifier make it \[300, 32\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, config, message, make, lender):
    with pytest.raises(UsageError, match=message):
        convert(make(change, **config), lender)


def test_blocks_that_differ_cannot_be_one(make, lender, tmp_path):
    converted = convert(make(), lender)
    tensors = {**converted.tensors, "blocks.1.layers.2.weight": torch.zeros(H, H)}
    config = speculators_config(converted.draft, VerifierName(lender.name, ()), HEADS, "float32")
    write_checkpoint(tmp_path / "ours", config, tensors)
    with pytest.raises(UsageError, match=r"blocks\.1\.layers\.2\.weight is not blocks\.1\.layers\.1\.weight"):
        exported(read_checkpoint(tmp_path / "ours"), "hydra")
