"""Tiny random verifiers, saved as real checkpoints so that everything is loaded the way users load it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped key heads and weights large enough that its argmax is never a near-tie."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=199,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    directory = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def reference(llama: Path) -> torch.nn.Module:
    """The same model as transformers runs it, unpacked, in float32."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    return model
