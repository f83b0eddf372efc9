"""Training: at every step of every chain, the table is compared with the verifier."""

from __future__ import annotations

from typing import Any

import torch

from bigram_draft.network import Network
from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.chains import find_chains
from speculators.algorithms.judging import Criterion, Judge, nothing_to_judge


class Objective:
    def __init__(self, network: Network, options: Any, verifier: Any, *, compute_dtype: torch.dtype) -> None:
        self.network, self.steps = network, network.config.tokens
        criterion = Criterion(
            losses={"kl": 1.0},
            weights=[1.0] * self.steps,
            reduction="token_mean",
            is_renormalized=True,
            drops_unknown=False,
            follows_data=False,
        )
        self.judge = Judge(criterion, verifier, None, dtype=torch.float32, compute_dtype=compute_dtype)

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        chains = find_chains(batch.loss_mask.cpu(), batch.lengths, self.steps)
        counted = self.judge.count(batch, chains, total)  # every process asks, also for nothing
        if not len(chains.roots):
            return nothing_to_judge(chains)
        newest = [batch.input_ids[chains.roots[alive] + 1 + step] for step, alive in enumerate(chains.alive)]
        hidden = [self.network.hidden(ids) for ids in newest]
        weight = self.network.after.weight
        return self.judge.judge(batch, chains, counted, hidden, (weight, weight.detach())).evaluation
