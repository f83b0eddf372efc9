"""Which tensors of a verifier are its head, and which heads are refused, by the name of what is in the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.native_names import find_head
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

PARTS = ("gate", "up", "down")
BLOCK = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in PARTS),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
)
QWEN = ("fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
BODY = ("model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight", "model.norm.weight")
WHOLE = [*BODY, *(f"mtp.{name}.weight" for name in QWEN), *(f"mtp.layers.0.{name}" for name in BLOCK)]


@pytest.mark.parametrize("inside", ["model.", "model.language_model.", ""])
def test_a_layer_after_the_last_is_a_head(inside: str) -> None:
    outer = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    names = [f"{inside}layers.4.{name}.weight" for name in outer] + [f"{inside}layers.4.{name}" for name in BLOCK]
    for model_type, style in (("glm4_moe", "glm"), ("deepseek_v3", "deepseek")):
        found = find_head([*BODY, *names], 4, model_type, "here")
        assert (found.style, set(found.names.values())) == (style, set(names))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (BODY, "no multi-token-prediction head"),
        ([*WHOLE, "mtp.layers.1.mlp.up_proj.weight"], r"more than one .*\(mtp.layers.1.mlp.up_proj.weight\)"),
        ([*WHOLE, "mtp.layers.0.mlp.experts.gate_up_proj"], r"has mtp.layers.0.mlp.experts.gate_up_proj; only heads"),
        ([*WHOLE, "mtp.layers.0.self_attn.indexer.wk.weight"], r"has mtp.layers.0.self_attn.indexer.wk.weight; only"),
        ([*WHOLE, "mtp.layers.0.mlp.up_proj.weight_scale_inv"], r"up_proj.weight_scale_inv; a quantized head cannot"),
        (
            [*WHOLE, "mtp.layers.0.self_attn.kv_b_proj.weight"],
            r"not whole, it has no self_attn.kv_a_proj_with_mqa.weig",
        ),
        ([*WHOLE, "mtp.layers.0.mlp.gate.weight"], r"not whole, it has no mlp.experts.0.gate_proj.weight"),
        (
            [*WHOLE, "mtp.layers.0.mlp.gate.weight", *(f"mtp.layers.0.mlp.experts.1.{p}_proj.weight" for p in PARTS)],
            r"not whole, it has no mlp.experts.0.gate_proj.weight",
        ),
        ([name for name in WHOLE if name != "mtp.fc.weight"], "has no fc.weight"),
    ],
)
def test_what_is_no_head_that_can_be_trained_is_said(names: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_head(names, 4, "qwen3_next", "here")


@pytest.mark.parametrize(
    ("said", "heads"),
    [
        ({"model_type": "mimo", "num_nextn_predict_layers": 1}, 1),
        ({"model_type": "qwen3_next"}, 1),
        ({"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1}}, 1),
        ({"model_type": "llama"}, 0),
        ({"model_type": "mimo", "num_nextn_predict_layers": 3}, 3),
    ],
)
def test_the_verifiers_config_tells_early_whether_there_is_one(said: dict, heads: int) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 90}
    said.setdefault("text_config", said).update(sizes)
    facts = VerifierFacts.from_config(said)
    assert facts.mtp_layers == heads
    options = SimpleNamespace()
    if heads == 1:
        assert MtpConfig.for_verifier(facts, options, draft_vocab_size=90, aux_layers=(4,)).hidden_size == 32
        return
    with pytest.raises(UsageError, match=f"has {heads or 'none'}; another algorithm"):
        MtpConfig.for_verifier(facts, options, draft_vocab_size=90, aux_layers=(4,))
