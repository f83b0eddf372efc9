"""Training of heads: gathered where an answer is drafted from, each step compared with the verifier's distribution."""

from __future__ import annotations

from typing import Any

import torch

from speculators.algorithms.base import Batch, Evaluation, Noise, Total, alone
from speculators.algorithms.chains import Chains, chains_of
from speculators.algorithms.heads.network import HeadsNetwork
from speculators.algorithms.judging import Criterion, Judge, nothing_to_judge
from speculators.layers.products import rounded_weight, weights_rounded_once
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.heads import HeadOptions


class HeadsObjective:
    """Loss, gradients and acceptance of heads on packed batches; head j's loss weighs `decay ** j`.

    A batch's `aux` is not looked at.
    """

    def __init__(
        self,
        network: HeadsNetwork,
        options: HeadOptions,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`compute_dtype` is the type of the teacher's products; the network brings its own (`mix_precision`)."""
        self.network, self.steps = network, options.heads
        criterion = Criterion(
            losses=options.loss.named(),
            weights=[options.decay**step for step in range(options.heads)],
            reduction=options.reduction,
            is_renormalized=options.is_renormalized,
            drops_unknown=options.drops_unknown,
            follows_data=options.loss.follows_data,
        )
        for head in network.heads:
            head.requires_grad_(options.trains_heads)
        self.judge = Judge(
            criterion,
            verifier,
            network.target_ids,
            dtype=network.final_norm.dtype,
            compute_dtype=compute_dtype,
            chunk=chunk,
        )

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """Loss, measurements and acceptance of one batch, or a part of it; nothing here is random."""
        chains = chains_of(batch, self.steps)
        counted = self.judge.count(batch, chains, total)
        if not len(chains.roots):
            return nothing_to_judge(chains)
        with weights_rounded_once(self.network):
            hidden = self._hidden(batch, chains)
            heads = [(_weight(head), rounded_weight(head)) for head in self.network.heads]
            return self.judge.judge(batch, chains, counted, hidden, heads).evaluation

    def _hidden(self, batch: Batch, chains: Chains) -> list[torch.Tensor]:
        """What each head reads of the chains that still count there, [A_j, ...]."""
        network, place = self.network, batch.last.device
        state = network.begin(batch.last[chains.roots])
        before = torch.arange(len(chains.roots))
        found = []
        for step, alive in enumerate(chains.alive):
            if len(alive) < len(before):
                state = state.index_select(0, torch.searchsorted(before, alive).to(place))
            state = network.follow(step, state, batch.input_ids[chains.roots[alive] + 1 + step])
            found.append(network.hidden(step, state))
            before = alive
        return found


Objective = HeadsObjective


def _weight(head: Any) -> torch.Tensor:
    weight: torch.Tensor = head.weight
    return weight
