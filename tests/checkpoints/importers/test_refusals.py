"""Whatever is wrong with a draft is said once, by name, before anything is written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from speculators.checkpoints.convert import convert
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import read_checkpoint
from speculators.errors import UsageError

Change = Callable[[dict[str, torch.Tensor]], Any]


def _spoilt(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"][3, 5] = float("nan")


def _absolute(tensors: dict[str, torch.Tensor]) -> None:
    """Ids in place of offsets."""
    tensors["d2t"] = tensors["d2t"] + torch.arange(len(tensors["d2t"]))


@pytest.mark.parametrize(
    ("layout", "options", "change", "message"),
    [
        ("eagle3", {}, _spoilt, "source: fc.weight holds values that are no numbers"),
        ("eagle3", {}, lambda t: t.update({"norm.weight": t["norm.weight"].int()}), "norm.weight is int32; allowed"),
        ("eagle3", {}, lambda t: t.update(d2t=t["d2t"].int()), "d2t is int32; allowed: int64"),
        (
            "eagle3",
            {},
            lambda t: t.update({"norm.weight": t["norm.weight"].half()}),
            "source mixes types: .* is float32, .* is float16",
        ),
        ("eagle3", {}, lambda t: t.update(t2d=torch.ones(200, dtype=torch.bool)), "a vocabulary of 200 tokens, .* 300"),
        ("eagle3", {"vocab_size": 299}, lambda t: t.clear(), "holds no weights"),
        ("modelopt", {"vocab_size": 299}, lambda t: None, "a vocabulary of 299 tokens, and the verifier has 300"),
        ("modelopt", {}, _absolute, "d2t leads outside of the verifier's 300 tokens; it must hold offsets"),
        ("eagle3", {}, _absolute, "d2t (must hold offsets|and t2d disagree)"),
        ("eagle3", {}, lambda t: t.update(extra=torch.zeros(2)), "source holds extra, which an EAGLE-3 draft"),
        (
            "eagle3",
            {"attention_bias": True},
            lambda t: t.update({"midlayer.self_attn.q_proj.bias": torch.zeros(32)}),
            "source holds midlayer.self_attn.q_proj.bias, which",
        ),
        ("eagle3", {}, lambda t: t.pop("norm.weight"), "source lacks norm.weight"),
        (
            "eagle3",
            {},
            lambda t: t.update({"lm_head.weight": torch.zeros(41, 32)}),
            r"lm_head.weight has the shape \[41, 32\]; config and verifier make it \[40, 32\]",
        ),
        (
            "eagle3",
            {"hidden_size": 48},
            lambda t: t.update({"fc.weight": torch.zeros(48, 144)}),
            "a verifier whose states are 48 wide, and this one's are 32",
        ),
        (
            "eagle3",
            {"width": 24, "target_hidden_size": 32},
            lambda t: None,
            "source lacks embed_tokens.weight; the verifier's are 32 wide, the draft's 24",
        ),
        ("modelopt", {"quantization_config": {"quant_method": "fp8"}}, lambda t: None, "source is quantised"),
        ("modelopt", {"eagle_config": {"use_aux_hidden_state": False}}, lambda t: None, "it is an EAGLE-1 draft"),
        ("modelopt", {"parallel_draft_step": 4}, lambda t: None, "drafts several tokens in parallel"),
        (
            "eagle3",
            {"eagle_aux_hidden_state_layer_ids": [2, 5, 10]},
            lambda t: None,
            "layer 10, and the verifier has 9",
        ),
        ("specforge", {"norm_output": False}, lambda t: None, "without a norm before its head"),
        ("eagle3", {"hidden_act": "gelu"}, lambda t: None, "activation is silu, not 'gelu'"),
        ("eagle3", {"reduced": None}, lambda t: t.update(d2t=torch.ones(300).long(), t2d=torch.ones(300) > 0), "maps"),
    ],
)
def test_a_draft_that_is_not_right_is_refused_by_name(
    layout, options, change: Change, message, make_draft, opened, lender
):
    draft = make_draft(layout, **options)
    change(draft.tensors)
    with pytest.raises(UsageError, match=message):
        convert(opened(draft), lender)


def test_a_type_that_is_too_small_is_refused(make_draft, opened, lender):
    draft = make_draft("eagle3")
    draft.tensors["fc.weight"][0, 0] = 1e6
    with pytest.raises(UsageError, match=r"fc\.weight holds values too large for float16"):
        convert(opened(draft), lender, dtype="float16")


def test_a_file_that_is_cut_off_is_refused(make_draft, tmp_path):
    folder = make_draft("eagle3").save(tmp_path / "one")
    whole = (folder / "model.safetensors").read_bytes()
    for part in (whole[:-100], whole + b"more", whole[:40]):
        (folder / "model.safetensors").write_bytes(part)
        with pytest.raises(UsageError, match=r"is cut off|not a whole safetensors file"):
            Foreign.open(folder)
    pickled = make_draft("eagle3").save(tmp_path / "two", pickled=True) / "pytorch_model.bin"
    pickled.write_bytes(pickled.read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"pytorch_model.bin is (broken|not read)"):
        Foreign.open(pickled.parent)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


def test_a_pickle_with_code_is_not_run(make_draft, tmp_path, capsys):
    folder = make_draft("eagle3").save(tmp_path, pickled=True)
    torch.save({"fc.weight": torch.zeros(2), "more": _Code()}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="holds more than tensors, and such a file could run code"):
        Foreign.open(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Code()))
    with pytest.raises(UsageError, match="is not read"):
        Foreign.open(folder)
    assert "code was run" not in capsys.readouterr().out


def test_a_shard_that_is_missing_is_named(make_draft, tmp_path):
    draft = make_draft("eagle3")
    names = sorted(draft.tensors)
    (tmp_path / "config.json").write_text(json.dumps(draft.config))
    files = {name: f"model-0000{1 + (number % 2)}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: draft.tensors[name] for name in names if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert set(Foreign.open(tmp_path).headers) == set(names)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"is not whole: model-00002-of-00002\.safetensors is missing"):
        Foreign.open(tmp_path)


def _numbered(*left_out: str) -> dict[str, torch.Tensor]:
    """A Medusa draft of two heads, by its authors' names."""
    found = {}
    for head in range(2):
        found |= {f"{head}.0.linear.weight": torch.randn(32, 32), f"{head}.0.linear.bias": torch.randn(32)}
        found[f"{head}.1.weight"] = torch.randn(300, 32)
    return {name: value for name, value in found.items() if name not in left_out}


def _steps(*left_out: str) -> dict[str, torch.Tensor]:
    """An MLP speculator of two steps."""
    found = {}
    for step in range(2):
        found |= {f"emb.{step}.weight": torch.randn(300, 16), f"head.{step}.weight": torch.randn(300, 16)}
        found |= {f"ln.{step}.{kind}": torch.randn(16) for kind in ("weight", "bias")}
        found[f"proj.{step}.weight"] = torch.randn(16, 16 if step else 32)
    return {name: value for name, value in found.items() if name not in left_out}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, _numbered("0.1.weight", "1.1.weight"), "lacks the first head's output layer"),
        ({}, _numbered("1.1.weight"), "lacks lm_heads.1.weight"),
        ({}, _numbered("0.0.linear.weight", "0.0.linear.bias"), "lacks blocks.0.layers.0.weight"),
        ({}, {**_numbered(), "0.1.weight": torch.randn(300)}, r"0.1.weight has the shape \[300\]"),
        ({}, {**_numbered(), "5.1.weight": torch.randn(300, 32)}, "holds 5.1.weight, which a Medusa draft"),
        ({}, _steps(), r"does not say how many tokens are drafted \(n_predict\)"),
        ({"n_predict": 2}, _steps("proj.0.weight"), r"lacks the first step's projection \(proj.0.weight\)"),
        ({"n_predict": 2}, _steps("head.0.weight"), r"lacks the first step's head \(head.0.weight\)"),
        ({"n_predict": 2}, _steps("ln.1.bias"), "lacks norms.1.bias"),
        ({"n_predict": 1}, _steps(), "holds .*1.weight.*, which an MLP speculator"),
        ({"n_predict": 2, "tie_weights": True}, _steps("emb.0.weight"), "lacks emb.0.weight, of which later steps'"),
    ],
)
def test_numbered_tensors_that_lack_or_are_left_over_are_named(config, tensors, message, tmp_path, lender):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=message):
        convert(Foreign.open(tmp_path, "source"), lender)


BROKEN = [
    ("{bad", "is not valid JSON"),
    ("[]", "has no `weight_map`"),
    ("{}", "has no `weight_map`"),
    ('{"weight_map": ["model.safetensors"]}', "should give the name of a file for each tensor"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_index_is_said_to_be_broken(text, message, make_draft, tmp_path):
    folder = make_draft("speculators", speculators_model_type="eagle3").save(tmp_path)
    (folder / "model.safetensors.index.json").write_text(text)
    for read in (Foreign.open, read_checkpoint):
        with pytest.raises(UsageError, match=rf"index\.json:? .*{message}"):
            read(folder)


@pytest.mark.parametrize(
    ("files", "place", "problem"),
    [
        (["m.gguf"], "m.gguf", r"m\.gguf cannot be read: there is no config\.json beside it"),
        (["m.gguf", "config.json"], "m.gguf", r"m\.gguf is neither a \.safetensors nor a \.bin or \.pt file"),
        (["m.gguf", "config.json"], "", "holds no weights"),
        ([], "", r"there is no config\.json in it"),
    ],
)
def test_what_is_no_draft_is_told_what_one_is(files, place, problem, tmp_path):
    for file in files:
        (tmp_path / file).write_text("{}")
    expected = (
        r"a draft is a config\.json with \*\.safetensors, \*\.bin or \*_head\.pt beside it; GGUF is not converted"
    )
    with pytest.raises(UsageError, match=rf"{problem}; {expected}$"):
        Foreign.open(tmp_path / place)
