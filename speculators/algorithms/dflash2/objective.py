"""DFlash-2's training: DFlash's, and a selector that learns to choose the verifier's token among the candidates.

The selector is fed the true token before, and the verifier's token replaces the last candidate where it is not among
them. Accuracy and acceptance are those of what the selector chooses, from candidates that nothing was put among.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from speculators.algorithms.base import Batch, Evaluation
from speculators.algorithms.chains import Chains
from speculators.algorithms.dflash.objective import BlockObjective, falling
from speculators.algorithms.dflash2.network import DFlash2Network
from speculators.algorithms.judging import Counted, chosen_otherwise
from speculators.layers.vocabulary import VerifierHead
from speculators.losses.chunked import chunk_size
from speculators.recipe.shapes.dflash2 import DFlash2


class DFlash2Objective(BlockObjective):
    """Loss, gradients and acceptance of a DFlash-2 draft on packed batches."""

    def __init__(
        self,
        network: DFlash2Network,
        options: DFlash2,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        weights = falling(options.gamma, network.config.proposed)
        super().__init__(network, options, weights, verifier, compute_dtype=compute_dtype, chunk=chunk)
        self._draft, self._weight = network, options.selector.weight

    def _evaluated(self, batch: Batch, chains: Chains, counted: Counted, hidden: list[torch.Tensor]) -> Evaluation:
        """Also measured is `selector`, its cross-entropy among the candidates."""
        head = self.network.head_weight.detach(), self._head
        verdict = self.judge.judge(batch, chains, counted, hidden, head)
        total, measured = verdict.evaluation.loss, dict(verdict.evaluation.measured)
        sums, counts, chosen = 0.0, 0.0, []
        for step, (alive, state, row) in enumerate(zip(chains.alive, hidden, verdict.rows, strict=True)):
            places = chains.roots[alive] + 1 + step
            found = self._candidates(state)
            before, wanted = batch.input_ids[places], batch.argmax[places]
            with torch.no_grad():
                best = self._scores(state, before, found).argmax(-1, keepdim=True)
                chosen.append(found.gather(-1, best)[:, 0])
            is_there = (found == wanted[:, None]).any(-1)
            offered = torch.cat([found[:, :-1], torch.where(is_there, found[:, -1], wanted)[:, None]], -1)
            place = (offered == wanted[:, None]).int().argmax(-1)
            values = functional.cross_entropy(self._scores(state, before, offered), place, reduction="none")
            total = total + self._weight * torch.dot(values, row.weights)
            sums, counts = sums + float(values.detach().sum()), counts + len(values)
        measured |= {"selector": (sums, counts), "loss": (float(total.detach()), counted.share)}
        evaluation = replace(verdict.evaluation, loss=total, measured=measured)
        return chosen_otherwise(batch, chains, evaluation, chosen)

    def _scores(self, state: torch.Tensor, before: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Scores [n, c] of candidates: their logits, and how well each fits after the token before."""
        rows = self._head[candidates]  # [n, c, h]
        own = torch.einsum("nh,nch->nc", state.to(rows.dtype), rows).to(state.dtype)
        fitting: torch.Tensor = self._draft.candidate_selector(state, before, candidates)
        return own + fitting

    @torch.no_grad()
    def _candidates(self, state: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens int64 [n, c] after states [n, h], never all logits at once."""
        size = chunk_size(self._head, self.judge.chunk)
        count = self._draft.config.selector_top_k
        parts = [
            functional.linear(part.to(self._head.dtype), self._head).topk(count, -1).indices
            for part in torch.split(state, size)
        ]
        return torch.cat(parts)


Objective = DFlash2Objective
