"""Drafts that are not EAGLE-3's, through the whole frame: out to what vLLM loads, told from its files, in again."""

from __future__ import annotations

import pytest
import torch

from speculators.algorithms import load
from speculators.algorithms.mtp.config import MtpConfig
from speculators.checkpoints.convert import convert
from speculators.checkpoints.describe import describe
from speculators.checkpoints.exporters import write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import Checkpoint, read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.errors import UsageError
from speculators.recipe.load import load_recipe
from speculators.verifiers.layer_ids import auto_layers

OUT = {"eagle": "eagle", "medusa": "medusa", "mlp_speculator": "mlp_speculator", "draft_model": "draft_model"}
_BLOCKS = ", layers: 2, block_size: 4, aux_layers: [1, 3], draft_vocab_size: null"
NEEDED = {
    "draft_model": ", random: {layers: 2}",
    "dflash": _BLOCKS,
    "dspark": _BLOCKS,
    "eagle3": ", aux_layers: [1, 2, 3], draft_vocab_size: null",
    "peagle": ", aux_layers: [1, 2, 3], draft_vocab_size: null",
}
"""What a recipe has to say of an algorithm beside its name."""


def written(kind, lender, folder):
    torch.manual_seed(0)
    options = load_recipe("tiny", sets=[f"algorithm={{type: {kind}{NEEDED.get(kind, '')}}}"]).recipe.algorithm
    config = load(kind, "config").Config.for_verifier(
        lender.facts, options, draft_vocab_size=lender.facts.vocab_size, aux_layers=auto_layers(lender.facts.layers)
    )
    network = load(kind, "network").Network(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    whole = speculators_config(config.to_config_json(), VerifierName("a/b", ("LlamaForCausalLM",)), 3, "float32")
    write_checkpoint(folder, whole, network.state_dict())
    return read_checkpoint(folder)


@pytest.mark.parametrize("kind", list(OUT))
def test_a_draft_goes_out_is_told_and_comes_back_bit_for_bit(kind, lender, tmp_path):
    ours = written(kind, lender, tmp_path / "ours")
    write_export(ours, OUT[kind], tmp_path / "theirs")
    foreign = Foreign.open(tmp_path / "theirs")
    assert describe(foreign).format == OUT[kind]
    back = convert(foreign, lender)
    assert back.draft["speculators_model_type"] == kind
    assert back.tensors.keys() == ours.tensors.keys()
    assert all(torch.equal(value, ours.tensors[name]) for name, value in back.tensors.items())


@pytest.mark.parametrize("kind", [*OUT, "hydra"])
def test_what_vllm_does_not_load_in_our_format_is_said_with_the_way_there(kind, lender, tmp_path):
    written(kind, lender, tmp_path / "ours")
    told = describe(Foreign.open(tmp_path / "ours"))
    assert not told.served
    assert told.problems[0] == f"vLLM does not load drafts of the type {kind} in this format"
    loaded = kind in OUT and kind != "mlp_speculator"  # vLLM keeps its reader of these switched off
    ways = [f"speculators export {tmp_path / 'ours'} --to {OUT[kind]} writes what vLLM loads"] if loaded else []
    assert list(told.advice) == [*ways, f"speculators serve {tmp_path / 'ours'}"]


def _edited(**changes):
    def edit(config, tensors):
        config.update(changes)

    return edit


def _without(*keys):
    def edit(config, tensors):
        for key in keys:
            (tensors if key in tensors else config).pop(key)

    return edit


def _biased(config, tensors):
    config["fc_bias"] = True
    tensors["fc.bias"] = torch.zeros(len(tensors["fc.weight"]))


def _qwen3(config, tensors):
    config["transformer_layer_config"]["model_type"] = "qwen3"


SPOILT = [
    ("eagle", _edited(), "export"),
    ("eagle", _biased, ""),
    ("hass", _biased, ""),
    ("eagle", _without("fc.weight"), ""),
    ("medusa", _edited(), "export"),
    ("mlp_speculator", _edited(), ""),
    ("draft_model", _edited(), "export"),
    ("eagle3", _without("norm_output", "fc_norm"), "convert"),
    ("eagle3", _without("eagle_aux_hidden_state_layer_ids"), "convert"),
    ("eagle3", _without("speculators_config"), "convert"),
    ("eagle3", _without("norm_output", "fc.weight"), ""),
    ("eagle3", _edited(norm_before_fc=True), ""),
    ("eagle3", _qwen3, ""),
    ("dflash", _without("block_size"), ""),
    ("dflash", _without("sliding_window_non_causal"), ""),
    ("dspark", _without("sample_from_anchor"), ""),
    ("peagle", _without("norm_before_fc"), ""),
]


@pytest.mark.parametrize(("kind", "spoil", "advised"), SPOILT)
def test_every_export_and_conversion_that_is_advised_succeeds(kind, spoil, advised, lender, tmp_path):
    ours = written(kind, lender, tmp_path / "ours")
    config, tensors = dict(ours.config), dict(ours.tensors)
    spoil(config, tensors)
    write_checkpoint(tmp_path / "ours", config, tensors)
    told = describe(Foreign.open(tmp_path / "ours"))
    commands = [advice.split() for advice in told.advice if advice.startswith("speculators ")]
    found = {command[1]: command for command in commands if command[1] in ("export", "convert")}
    assert list(found) == ([advised] if advised else [])
    if "export" in found:
        target = found["export"][found["export"].index("--to") + 1]
        assert write_export(read_checkpoint(tmp_path / "ours"), target, tmp_path / "theirs").tensors
    if "convert" in found:
        assert convert(Foreign.open(tmp_path / "ours"), lender).draft["speculators_model_type"] == kind


def test_a_kind_that_a_target_has_no_words_for_is_refused(lender, tmp_path):
    medusa = written("medusa", lender, tmp_path / "ours")
    message = "is of the type medusa, and eagle is for eagle and hass; other targets for medusa: medusa$"
    with pytest.raises(UsageError, match=message):
        write_export(medusa, "eagle", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("kind", "target", "others"),
    [
        ("eagle", "eagle", "other targets for eagle: none"),
        ("peagle", "eagle3", "other targets for peagle: peagle"),
        ("eagle3", "eagle3", "other targets for eagle3: eagle3.1, modelopt, specforge"),
        ("mtp", "eagle3", "mtp goes to none: `speculators stitch` writes it back into its verifier"),
    ],
)
def test_a_refusal_names_where_else_the_draft_may_go(kind, target, others, lender, tmp_path):
    if kind == "mtp":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "attention_heads": 4, "key_value_heads": 2, "head_dim": 8}
        shape = MtpConfig(
            **sizes, vocab_size=300, rope={"rope_type": "default", "rope_theta": 10000.0}, rms_norm_eps=1e-5,
            max_position_embeddings=64, style="mimo", aux_layers=(9,),
        )  # fmt: skip
        config = speculators_config(shape.to_config_json(), VerifierName("a/b", ()), 3, "float32")
        checkpoint = Checkpoint(tmp_path, config, {})
    else:
        found = written(kind, lender, tmp_path / "ours")
        checkpoint = Checkpoint(
            tmp_path, {**found.config, "fc_bias": True, "norm_before_residual": True}, found.tensors
        )
    with pytest.raises(UsageError) as refusal:
        write_export(checkpoint, target, tmp_path / "theirs")
    assert str(refusal.value).endswith(f"; {others}")
