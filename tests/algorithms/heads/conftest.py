"""What the slow references of heads share: every position of every document, one number after another, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Batch
from speculators.algorithms.heads.network import HeadsNetwork
from speculators.algorithms.heads.objective import HeadsObjective
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights

Logits = Callable[[dict[str, torch.Tensor], torch.Tensor, list[int]], Sequence[torch.Tensor]]
"""All heads' logits from the weights, the normed state at a position, and the ids of the tokens after it."""


@pytest.fixture
def section() -> Callable[[str], Any]:
    """A recipe's `algorithm` section, checked and filled with defaults."""
    return lambda said: load_recipe("tiny", sets=[f"algorithm={{{said}}}"]).recipe.algorithm


@pytest.fixture
def verifier_weights(head: VerifierHead) -> VerifierWeights:
    generator = torch.Generator().manual_seed(9)
    embedding = torch.randn(head.weight.shape, generator=generator, dtype=torch.float64)
    return VerifierWeights(embedding, head.weight, head.norm, head.eps)


@pytest.fixture
def check_against(head: VerifierHead, plain: Any) -> Callable[..., None]:
    """Compare an objective's loss and gradients with the definition: head i of `heads` weighs decay ** i."""

    def check(network: HeadsNetwork, objective: HeadsObjective, batch: Batch, logits: Logits, decay: float) -> None:
        wanted = {name: one for name, one in network.named_parameters() if one.requires_grad}
        sparse = torch.autograd.grad(objective.evaluate(batch).loss, list(wanted.values()), allow_unused=True)
        found = dict(zip(wanted, sparse, strict=True))
        weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        kept = weights["t2d"].nonzero()[:, 0] if "t2d" in weights else torch.arange(len(head.weight))
        losses: list[list[torch.Tensor]] = [[] for _ in range(objective.steps)]
        start = 0
        for length in batch.lengths:
            ids, mask = batch.input_ids[start : start + length].tolist(), batch.loss_mask[start : start + length]
            last = batch.last[start : start + length]
            start += length
            for t in range(length - 1):
                drafted = logits(weights, plain.rms(last[t], head.norm), ids[t + 1 :])
                for step in range(objective.steps):
                    if t + 2 + step >= length or not bool(mask[t + 1 : t + 3 + step].all()):
                        break  # no next token of this answer to foretell
                    p = (head.weight[kept] @ plain.rms(last[t + 1 + step], head.norm)).softmax(0)
                    losses[step].append((p * (p.log() - drafted[step].log_softmax(0))).sum())
        total = sum(
            (decay**step * torch.stack(one).mean() for step, one in enumerate(losses) if one),
            start=torch.zeros((), dtype=torch.float64),
        )
        dense = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        torch.testing.assert_close(objective.evaluate(batch).loss, total, rtol=1e-9, atol=1e-12)
        for name, gradient in zip(wanted, dense, strict=True):
            mine = found[name]
            if gradient is None:
                assert mine is None or not mine.any(), name
            else:
                assert mine is not None, name
                torch.testing.assert_close(
                    mine, gradient, rtol=1e-7, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
                )

    return check
