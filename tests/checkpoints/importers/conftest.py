"""Synthetic drafts in each published layout: the tensor names and config keys of the real ones, in small."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from speculators.checkpoints.foreign import Foreign
from speculators.verifiers.lender import Lender
from speculators.verifiers.random_model import write_random_model

VOCABULARY, HIDDEN, INNER, HEADS, GROUPS, LAYERS = 300, 32, 48, 4, 2, 9
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Draft:
    """A foreign draft, in memory."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def save(self, folder: Path, *, pickled: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        if pickled:
            torch.save(self.tensors, folder / "pytorch_model.bin")
        else:
            save_file({name: value.clone() for name, value in self.tensors.items()}, folder / "model.safetensors")
        return folder


def _layer(prefix: str, hidden: int, head_dim: int) -> dict[str, torch.Tensor]:
    heads, groups = HEADS * head_dim, GROUPS * head_dim
    shapes = {
        "self_attn.q_proj": (heads, 2 * hidden),
        "self_attn.k_proj": (groups, 2 * hidden),
        "self_attn.v_proj": (groups, 2 * hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (INNER, hidden),
        "mlp.up_proj": (INNER, hidden),
        "mlp.down_proj": (hidden, INNER),
    }
    found = {f"{prefix}{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for norm in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        found[f"{prefix}{norm}.weight"] = 1 + 0.3 * torch.randn(hidden)
    return found


def build(
    layout: str,
    *,
    reduced: int | None = 40,
    width: int = HIDDEN,
    own_embeddings: bool = False,
    head_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Draft:
    """A draft of random weights; `reduced` is its own vocabulary, `width` its hidden size."""
    torch.manual_seed(7)
    prefix = "layers.0." if layout in ("modelopt", "speculators") else "midlayer."
    size = head_dim or width // HEADS
    tensors = {"fc.weight": torch.randn(width, 3 * HIDDEN) * 0.2, "norm.weight": 1 + 0.3 * torch.randn(width)}
    tensors |= _layer(prefix, width, size)
    tensors["lm_head.weight"] = torch.randn(reduced or VOCABULARY, width)
    if own_embeddings:
        tensors["embed_tokens.weight"] = torch.randn(VOCABULARY, width)
    if reduced:
        kept = torch.randperm(VOCABULARY)[:reduced].sort().values
        tensors["d2t"] = kept - torch.arange(reduced)
        if layout != "modelopt":
            tensors["t2d"] = torch.zeros(VOCABULARY, dtype=torch.bool)
            tensors["t2d"][kept] = True
    elif layout == "specforge":  # its buffers are there whatever the vocabulary
        tensors |= {"d2t": torch.zeros(VOCABULARY, dtype=torch.int64), "t2d": torch.ones(VOCABULARY, dtype=torch.bool)}
    if layout == "eagle3.1":
        tensors |= {f"fc_norm.{i}.weight": 1 + 0.3 * torch.randn(HIDDEN) for i in range(3)}
    tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    flat = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.28.1",
        "use_cache": True,
        "vocab_size": VOCABULARY,
        "draft_vocab_size": reduced or VOCABULARY,
    }
    if head_dim:
        flat["head_dim"] = head_dim
    return Draft({**flat, **_added(layout), **config}, tensors)


def _added(layout: str) -> dict[str, Any]:
    if layout == "modelopt":
        section = {
            "eagle_aux_hidden_state_layer_ids": [1, 3, 5],
            "use_aux_hidden_state": True,
            "use_input_layernorm_in_first_layer": True,
            "use_last_layernorm": True,
            "use_mtp_layernorm": False,
        }
        return {"eagle_config": section, "rope_scaling": LLAMA3, "rope_theta": 500000.0, "attention_bias": False}
    if layout == "specforge":
        section = {"eagle_aux_hidden_state_layer_ids": [1, 3, 5], "use_aux_hidden_state": True}
        return {"eagle_config": section, "rope_theta": 1000000.0, "rope_scaling": None}
    if layout == "eagle3.1":
        return {"fc_norm": True, "norm_output": True, "rope_theta": 1000000.0, "rope_scaling": None}
    return {}


def old_speculators() -> Draft:
    """As speculators 0.3 wrote it: few keys, by-products of its library, no embeddings."""
    plain = build("speculators")
    layer = {
        key: plain.config[key]
        for key in (
            *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"),
            *("rms_norm_eps", "max_position_embeddings", "vocab_size", "hidden_act"),
        )
    }
    config = {
        "architectures": ["Eagle3Speculator"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        "has_no_defaults_at_init": False,
        "draft_vocab_size": 40,
        "norm_before_residual": True,
        "speculators_model_type": "eagle3",
        "speculators_version": "0.1.0.dev14",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1}],
            "verifier": {"name_or_path": "org/verifier", "architectures": ["LlamaForCausalLM"]},
        },
        "target_hidden_size": HIDDEN,
        "torch_dtype": "float32",
        "transformer_layer_config": {**layer, "model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    }
    return Draft(config, plain.tensors)


@pytest.fixture
def make_draft() -> Callable[..., Draft]:
    return build


@pytest.fixture
def old_draft() -> Draft:
    return old_speculators()


@pytest.fixture(scope="session")
def verifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lender") / "model"
    shape = SimpleNamespace(
        layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=64,
        attention_heads=HEADS,
        key_value_heads=GROUPS,
        vocab_size=VOCABULARY,
        seed=0,
    )
    write_random_model(shape, folder)
    return folder


@pytest.fixture
def lender(verifier_folder: Path) -> Lender:
    return Lender.of_directory(verifier_folder, str(verifier_folder))


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Foreign]:
    def save(draft: Draft, *, pickled: bool = False) -> Foreign:
        return Foreign.open(draft.save(tmp_path / "source", pickled=pickled), "source")

    return save
