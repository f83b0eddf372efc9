"""The head's layer computes what the family's own layer computes in transformers, experts and rotation alike."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, HIDDEN, LATENT, TEXT
from torch.nn.functional import scaled_dot_product_attention

from speculators.algorithms.mtp.config import MtpConfig, told_by_shapes
from speculators.algorithms.mtp.layout import tensors
from speculators.algorithms.mtp.network import MtpNetwork
from speculators.algorithms.mtp.styles import HEAD
from speculators.verifiers.facts import VerifierFacts

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 16,
}
GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 2.5}
HEADS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "glm-4-moe": ("glm4_moe", "Glm4Moe", {**dict(FAMILIES["glm-4-moe"].values), **GROUPS, "attention_bias": True}),
    "glm-4-moe, one group, not scaled to one": (
        "glm4_moe",
        "Glm4Moe",
        {**dict(FAMILIES["glm-4-moe"].values), "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    ),
    "glm-4.7-flash": ("glm4_moe_lite", "Glm4MoeLite", {**LATENT, **GROUPS, "v_head_dim": 40}),
    "deepseek-v3": ("deepseek_v3", "DeepseekV3", {**LATENT, **GROUPS, "rope_parameters": YARN, "v_head_dim": 24}),
    "deepseek-v3, queries at once": ("deepseek_v3", "DeepseekV3", {**LATENT, "q_lora_rank": None}),
    "qwen3-next": ("qwen3_next", "Qwen3Next", dict(FAMILIES["qwen3-next"].values)),
    "qwen3.5-moe": ("qwen3_5_moe", "Qwen3_5Moe", dict(FAMILIES["qwen3.5-moe"].values)),
}
OURS = {
    "enorm": "token_layernorm",
    "hnorm": "hidden_layernorm",
    "eh_proj": "input_proj",
    "post_norm": "final_layernorm",
}
LENGTH, LAST = 23, 3


@pytest.fixture(params=list(HEADS))
def family(request: pytest.FixtureRequest) -> SimpleNamespace:
    """`theirs`, a layer with random weights, its `rotary` positions, and `config`, as its model's config.json has."""
    from transformers.modeling_layers import MtpLayer

    room, prefix, values = HEADS[request.param]
    module = import_module(f"transformers.models.{room}.modeling_{room}")
    text = "Text" if room == "qwen3_5_moe" else ""
    config = getattr(import_module(f"transformers.models.{room}.configuration_{room}"), f"{prefix}{text}Config")(
        **{**TEXT, **values}
    )
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    theirs: Any = MtpLayer(config, getattr(module, f"{prefix}DecoderLayer"), getattr(module, f"{prefix}RMSNorm"), LAST)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            level = 1.0 if name.endswith("norm.weight") and not room.startswith("qwen") else 0.0
            tensor.copy_(level + 0.2 * torch.randn(tensor.shape, generator=generator))
    rotary = getattr(module, f"{prefix}{text}RotaryEmbedding")(config)
    return SimpleNamespace(theirs=theirs.double().eval(), rotary=rotary, config=config.to_dict(), generator=generator)


def renamed(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layer's tensors under our names, expert by expert."""
    found = {}
    for name, tensor in theirs.items():
        outer, _, rest = name.partition(".")
        own = f"{OURS[outer]}.{rest}" if outer in OURS else rest.replace("shared_experts.", "shared_expert.")
        if own == "mlp.experts.gate_up_proj":
            for number, (gate, up) in enumerate(one.chunk(2) for one in tensor):
                found[f"mlp.experts.{number}.gate_proj.weight"] = gate
                found[f"mlp.experts.{number}.up_proj.weight"] = up
        elif own == "mlp.experts.down_proj":
            found |= {f"mlp.experts.{number}.down_proj.weight": one for number, one in enumerate(tensor)}
        else:
            found[own] = tensor
    return found


def ours(family: SimpleNamespace) -> MtpNetwork:
    facts = VerifierFacts.from_config({**family.config, "num_nextn_predict_layers": 1})
    promised = MtpConfig.for_verifier(facts, None, draft_vocab_size=facts.vocab_size, aux_layers=(facts.layers,))
    own = renamed(family.theirs.state_dict())
    shapes = {name: tensor.shape for name, tensor in own.items()}
    config = told_by_shapes(promised, promised.style, shapes, "here")
    assert MtpConfig.from_config_json(config.to_config_json()) == config
    assert tensors(config.to_config_json()) == {HEAD + name: tuple(shape) for name, shape in shapes.items()}
    network = MtpNetwork(config)
    network.load_state_dict({HEAD + name: tensor for name, tensor in own.items()})
    return network.double()


def test_the_layer_is_the_familys_own(family: SimpleNamespace) -> None:
    network = ours(family)
    embeddings, states = torch.randn(2, 1, LENGTH, HIDDEN, generator=family.generator, dtype=torch.float64)
    positions = torch.arange(LENGTH)
    unseen = torch.full((LENGTH, LENGTH), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        turns = family.rotary(embeddings.float(), positions[None])
        expected = family.theirs(embeddings, states, turns, unseen, positions[None], None)
        layer, tables = network.layer, network.tables(positions)
        x, residual = layer.enter(embeddings, states)
        queries, gates = layer.self_attn.queries(x, tables)
        seen = [one.transpose(1, 2) for one in (queries, *layer.self_attn.keys_values(x, tables))]
        attended = scaled_dot_product_attention(*seen, is_causal=True, enable_gqa=True).transpose(1, 2)
        found = network.normed(layer.leave(attended, gates, residual))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # their norms and routers are float32
