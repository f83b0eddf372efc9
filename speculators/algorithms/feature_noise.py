"""Noise on the verifier's streams in training: every document its own, whatever batch or process it is in."""

from __future__ import annotations

import torch

from speculators.algorithms.base import Noise
from speculators.algorithms.chains import Chains


def uniform(features: torch.Tensor, chains: Chains, noise: Noise) -> torch.Tensor:
    """Numbers from -1 to 1, one for each feature [C, A*h]; each document's own, whatever batch or part it is in."""
    drawn = [
        torch.rand((span.keys.stop - span.keys.start, features.shape[1]), generator=noise(number), dtype=features.dtype)
        for span, number in zip(chains.documents, torch.unique(chains.numbers).tolist(), strict=True)
    ]
    return (2 * torch.cat(drawn) - 1).to(features.device)
