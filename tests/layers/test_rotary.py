from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from speculators.errors import UsageError
from speculators.layers.rotary import Rotary, rotate

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 100000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        LLAMA3,
        YARN,
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.1, "truncate": False},
        YARN | {"attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2},
    ],
)
def test_queries_turn_as_in_transformers(parameters: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=256, rope_parameters=parameters
    )
    positions = torch.tensor([0, 1, 7, 100, 601])  # beyond the first table
    q = torch.randn(1, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    expected, _ = apply_rotary_pos_emb(q, q, cos, sin)
    turned = rotate(q[0].transpose(0, 1), Rotary(16, parameters, 256)(positions))
    torch.testing.assert_close(turned.transpose(0, 1), expected[0], rtol=1e-6, atol=1e-6)


def test_a_type_whose_frequencies_move_with_the_length_is_refused() -> None:
    with pytest.raises(UsageError, match="'dynamic'; allowed: default, linear, llama3, yarn"):
        Rotary(16, {"rope_type": "dynamic", "factor": 2.0}, 256)
