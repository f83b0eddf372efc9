"""A source's config comes back only beside the tensors it was written for; whatever comes back is read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from speculators.checkpoints.convert import convert
from speculators.checkpoints.exporters import write_export
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.load import read_checkpoint
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint

H, V, INNER = 32, 300, 16
Tensors = Mapping[str, torch.Tensor]


def medusa(*, is_vllm: bool) -> tuple[dict[str, Any], Tensors]:
    block, head = ("blocks.{}.layers.0.", "lm_heads.{}.") if is_vllm else ("{}.0.linear.", "{}.1.")
    found = {}
    for number in range(2):
        found[f"{block.format(number)}weight"] = torch.randn(H, H)
        found[f"{block.format(number)}bias"] = torch.randn(H)
        found[f"{head.format(number)}weight"] = torch.randn(V, H)
    return {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "org/verifier"}, found


def hydra(*, has_bias: bool) -> tuple[dict[str, Any], Tensors]:
    found = {}
    for number in range(2):
        for kind in ("linear", "res_connection"):
            found[f"hydra_mlp.{number}.0.{kind}.weight"] = torch.randn(H, H * (number + 2))
            found[f"hydra_mlp.{number}.0.{kind}.bias"] = torch.randn(H)
        found[f"hydra_lm_head.{number}.weight"] = torch.randn(V, H)
        if has_bias:
            found[f"hydra_lm_head.{number}.bias"] = torch.randn(V)
    return {"hydra_num_heads": 2, "base_model_name_or_path": "org/verifier"}, found


def mlp_speculator(prefix: str, *, tied_once: bool = False) -> tuple[dict[str, Any], Tensors]:
    found = {}
    for step in range(2):
        found[f"{prefix}proj.{step}.weight"] = torch.randn(INNER, INNER if step else H)
        if step and tied_once:
            continue
        found[f"{prefix}emb.{step}.weight"] = torch.randn(V, INNER)
        found[f"{prefix}ln.{step}.weight"] = torch.randn(INNER)
        found[f"{prefix}ln.{step}.bias"] = torch.randn(INNER)
        found[f"{prefix}head.{step}.weight"] = torch.randn(V, INNER)
    return {"n_predict": 2, "tie_weights": tied_once, "architectures": ["MLPSpeculatorPreTrainedModel"]}, found


def draft_model(*, is_tied: bool) -> tuple[dict[str, Any], Tensors]:
    sizes = {
        "self_attn.q_proj": (H, H),
        "self_attn.k_proj": (H, H),
        "self_attn.v_proj": (H, H),
        "self_attn.o_proj": (H, H),
        "mlp.gate_proj": (INNER, H),
        "mlp.up_proj": (INNER, H),
        "mlp.down_proj": (H, INNER),
        "input_layernorm": (H,),
        "post_attention_layernorm": (H,),
    }
    found = {f"model.layers.0.{name}.weight": torch.randn(size) for name, size in sizes.items()}
    found |= {"model.embed_tokens.weight": torch.randn(V, H), "model.norm.weight": torch.randn(H)}
    found["lm_head.weight"] = found["model.embed_tokens.weight"].clone() if is_tied else torch.randn(V, H)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": H,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": V,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": is_tied,
        "_name_or_path": "org/verifier",
    }
    return config, found


SOURCES: list[tuple[str, Callable[[], tuple[dict[str, Any], Tensors]], bool]] = [
    ("medusa", lambda: medusa(is_vllm=False), False),
    ("medusa", lambda: medusa(is_vllm=True), True),
    ("hydra", lambda: hydra(has_bias=False), False),
    ("hydra", lambda: hydra(has_bias=True), True),
    ("mlp_speculator", lambda: mlp_speculator(""), False),
    ("mlp_speculator", lambda: mlp_speculator("speculator."), True),
    ("mlp_speculator", lambda: mlp_speculator("speculator.", tied_once=True), False),
    ("draft_model", lambda: draft_model(is_tied=True), False),
    ("draft_model", lambda: draft_model(is_tied=False), True),
]


@pytest.mark.parametrize(("kind", "source", "is_kept"), SOURCES)
def test_a_config_comes_back_only_with_the_tensors_it_was_written_for(
    kind: str, source: Any, is_kept: bool, lender: Any, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config, tensors = source()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), tmp_path / "theirs" / "model.safetensors")
    first = convert(Foreign.open(tmp_path / "theirs"), lender)
    whole = speculators_config(first.draft, VerifierName(lender.name, ("LlamaForCausalLM",)), 2, first.dtype)
    write_checkpoint(tmp_path / "ours", whole, first.tensors)
    write_export(read_checkpoint(tmp_path / "ours"), kind, tmp_path / "back")
    back = Foreign.open(tmp_path / "back")
    has_its_tensors = {name: header.shape for name, header in back.headers.items()} == {
        name: tuple(value.shape) for name, value in tensors.items()
    }
    assert (has_its_tensors, back.config == config) == (is_kept, is_kept)
    again = convert(back, lender)
    told = again.found.candidate.importer.NAME
    assert told == kind
    assert {key: value for key, value in again.draft.items() if key not in ("converted_from", "head_bias")} == {
        key: value for key, value in first.draft.items() if key not in ("converted_from", "head_bias")
    }
    assert all(torch.equal(value, again.tensors[name]) for name, value in first.tensors.items())
