"""Tiny models of each family, written by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speculators.algorithms.draft_model.config import DraftModelConfig
from speculators.algorithms.draft_model.network import DraftModelNetwork
from speculators.algorithms.draft_model.source import ModelSource
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifiers.weights import VerifierWeights

V = 50
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 8},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True, "attention_bias": True},
}
SIZES = {
    "vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "bos_token_id": 3,
    "eos_token_id": [5, 7],
}  # fmt: skip


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """A model of a family's section, its weights random and none of them 0 or 1, saved as transformers saves it."""

    def write(folder: Path, **said: Any) -> Path:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SIZES, **said}))
        with torch.no_grad():
            for name, one in model.named_parameters():
                one.copy_(0.3 * torch.randn(one.shape) + (1 if "norm" in name else 0))
        model.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(params=list(FAMILIES))
def model_folder(request: pytest.FixtureRequest, write_model: Callable[..., Path], tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", **FAMILIES[request.param])


@pytest.fixture
def begun() -> Callable[[Path], DraftModelNetwork]:
    """The network that training would begin with for a recipe that names a folder."""

    def begin(folder: Path) -> DraftModelNetwork:
        facts: Any = SimpleNamespace(vocab_size=V)
        options: Any = SimpleNamespace(model=str(folder), revision=None, random=None)
        config = DraftModelConfig.for_verifier(facts, options, draft_vocab_size=V, aux_layers=())
        assert config.source == ModelSource(str(folder), path=folder)
        nothing = torch.zeros(V, 8)
        weights = VerifierWeights(nothing, nothing, torch.ones(8), 1e-5)
        return DraftModelNetwork.started(config, weights, DraftVocabulary.whole(V), torch.Generator())

    return begin
