"""Out and in again, in and out again: nothing changes, not one bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.checkpoints.convert import RECORD, convert
from speculators.checkpoints.exporters import exported, write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.errors import UsageError

BACK = [
    ("eagle3", {}, {}),
    ("eagle3", {"reduced": None}, {"pickled": True}),
    ("eagle3", {"width": 24, "own_embeddings": True, "target_hidden_size": 32}, {}),
    ("eagle3.1", {}, {}),
    ("modelopt", {}, {}),
    ("modelopt", {"reduced": None}, {}),
    ("specforge", {}, {}),
    ("specforge", {"reduced": None}, {}),
    ("specforge", {"norm_output": True, "own_embeddings": True}, {}),
]


def ours(folder: Path, converted, lender) -> Path:
    name = VerifierName(lender.name, lender.facts.architectures)
    write_checkpoint(folder, speculators_config(converted.draft, name, 3, converted.dtype), converted.tensors)
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("layout", "options", "how"), BACK)
def test_a_foreign_draft_comes_back_as_it_was(layout, options, how, dtype, make_draft, lender, opened, tmp_path):
    draft = make_draft(layout, dtype=dtype, **options)
    converted = convert(opened(draft, **how), lender, format=layout)
    folder = ours(tmp_path / "ours", converted, lender)
    write_export(read_checkpoint(folder), layout, tmp_path / "back")
    back = Foreign.open(tmp_path / "back")
    assert back.config == draft.config
    assert set(back.headers) == set(draft.tensors)
    for name, value in draft.tensors.items():
        found = back.read(name)
        assert found.dtype == value.dtype
        assert torch.equal(found.view(torch.uint8), value.view(torch.uint8)), name


SHAPES = {
    "eagle3": {},
    "eagle3.1": {"fc_norm": True, "norm_output": True, "norm_before_residual": True},
    "modelopt": {"norm_before_fc": True, "layers": 1},
    "specforge": {"fc_norm": True},
}


@pytest.mark.parametrize("target", ["eagle3", "eagle3.1", "modelopt", "specforge"])
@pytest.mark.parametrize("draft_vocab_size", [40, 300])
def test_a_draft_of_ours_comes_back_as_it_was(target, draft_vocab_size, lender, tmp_path):
    facts = lender.facts
    shape = Eagle3Config(
        hidden_size=32,
        intermediate_size=48,
        attention_heads=4,
        key_value_heads=2,
        head_dim=8,
        vocab_size=300,
        draft_vocab_size=draft_vocab_size,
        aux_layers=(1, 4, 7),
        rope={"rope_type": "linear", "rope_theta": 500000.0, "factor": 2.0},
        rms_norm_eps=1e-5,
        max_position_embeddings=facts.max_position_embeddings,
        **SHAPES[target],
    )
    network = Eagle3Network(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    if shape.has_vocabulary_map:
        kept = torch.randperm(300)[:40].sort().values
        network.d2t.copy_(kept - torch.arange(40))
        network.t2d[kept] = True
    tensors = {**network.state_dict(), "embed_tokens.weight": lender.lend("embedding").float()}  # never trained
    name = VerifierName(lender.name, facts.architectures)
    config = speculators_config(shape.to_config_json(), name, 3, "bfloat16")
    write_checkpoint(tmp_path / "ours", config, tensors)
    before = read_checkpoint(tmp_path / "ours")
    write_export(before, target, tmp_path / "theirs")
    assert "embed_tokens.weight" not in Foreign.open(tmp_path / "theirs").headers
    converted = convert(Foreign.open(tmp_path / "theirs"), lender, format=target)
    again = read_checkpoint(ours(tmp_path / "again", converted, lender))
    assert {key: value for key, value in again.config.items() if key != RECORD} == json.loads(
        json.dumps(dict(before.config))
    )
    assert set(again.tensors) == set(before.tensors)
    assert all(torch.equal(value, again.tensors[key]) for key, value in before.tensors.items())


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("eagle3", {"norm_before_residual": True}, "has norm_before_residual: the normed state goes on"),
        ("specforge", {"norm_output": True}, "has norm_output: the normed output is fed back"),
        ("modelopt", {"fc_norm": True}, "has fc_norm"),
        ("eagle3", {"layers": 2}, "the draft has several layers, and this format has one"),
        ("specforge", {"aux_layers": (0, 1, 2)}, "layer id 0"),
    ],
)
def test_what_a_format_cannot_say_is_refused(target, options, message, tmp_path):
    shape = Eagle3Config(
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "attention_heads": 4,
            "key_value_heads": 2,
            "head_dim": 4,
            "vocab_size": 50,
            "draft_vocab_size": 50,
            "aux_layers": (1, 2, 3),
            "rope": {"rope_type": "default", "rope_theta": 10000.0},
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
            **options,
        }
    )
    config = speculators_config(shape.to_config_json(), VerifierName("a/b", ()), 3, "float32")
    write_checkpoint(tmp_path, config, Eagle3Network(shape).state_dict())
    with pytest.raises(UsageError, match=message):
        exported(read_checkpoint(tmp_path), target)
