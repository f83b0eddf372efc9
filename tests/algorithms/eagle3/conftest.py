from collections.abc import Callable
from typing import Any

import pytest
import torch

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network


@pytest.fixture
def tiny_config() -> Callable[..., Eagle3Config]:
    def build(**changes: Any) -> Eagle3Config:
        values: dict[str, Any] = {
            "hidden_size": 24,
            "intermediate_size": 40,
            "attention_heads": 6,
            "key_value_heads": 2,
            "head_dim": 4,
            "vocab_size": 50,
            "draft_vocab_size": 32,
            "aux_layers": (1, 2, 4),
            "rope": {"rope_type": "default", "rope_theta": 100.0},
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 256,
        }
        return Eagle3Config(**(values | changes))

    return build


@pytest.fixture
def tiny_network(tiny_config: Callable[..., Eagle3Config]) -> Callable[..., Eagle3Network]:
    """A network with random weights everywhere, norms included, and the even verifier ids first in its vocabulary."""

    def build(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Eagle3Network:
        config = tiny_config(**changes)
        network = Eagle3Network(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(noise if parameter.dim() == 2 else 1 + noise)
        if config.has_vocabulary_map:
            kept = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size].sort().values
            network.t2d[kept] = True
            network.d2t.copy_(kept - torch.arange(len(kept)))
        return network.to(dtype)

    return build
