"""DSpark's training: DFlash's, with the Markov head fed the true tokens, and a head that learns to foretell acceptance.

The Markov bias is no second product over the vocabulary: `[h; y]` times `[head; W2]` is one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from speculators.algorithms.base import Batch, Evaluation
from speculators.algorithms.chains import Chains
from speculators.algorithms.dflash.objective import BlockObjective, falling
from speculators.algorithms.dspark.network import DSparkNetwork
from speculators.algorithms.judging import Counted, Verdict
from speculators.layers.products import rounded_weight
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.dspark import DSpark


class DSparkObjective(BlockObjective):
    """Loss, gradients and acceptance of a DSpark draft on packed batches."""

    def __init__(
        self,
        network: DSparkNetwork,
        options: DSpark,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        weights = falling(options.gamma, network.config.proposed)
        super().__init__(network, options, weights, verifier, compute_dtype=compute_dtype, chunk=chunk)
        self._draft, self._confidence = network, options.confidence.weight

    def _evaluated(self, batch: Batch, chains: Chains, counted: Counted, hidden: list[torch.Tensor]) -> Evaluation:
        """Also measured is `confidence`, its cross-entropy, where there is such a head."""
        second = self._draft.markov_head.markov_w2
        before = [
            self._draft.markov(batch.input_ids[chains.roots[alive] + 1 + step]).to(one.dtype)
            for step, (alive, one) in enumerate(zip(chains.alive, hidden, strict=True))
        ]
        read = [torch.cat(pair, -1) for pair in zip(hidden, self._biasing(chains, hidden, before), strict=True)]
        whole = torch.cat([self._head, rounded_weight(second).to(self._head.dtype)], 1)
        verdict = self.judge.judge(batch, chains, counted, read, (second.weight, whole))
        if not self._confidence:
            return verdict.evaluation
        return self._with_confidence(verdict, hidden, before, counted.share)

    def _biasing(self, chains: Chains, hidden: list[torch.Tensor], before: list[torch.Tensor]) -> list[torch.Tensor]:
        """What W2 reads at each step, y [A_j, r]; a block's memory goes from one step to the next while it lives."""
        found, memory = [], None
        living = chains.alive[0]
        for alive, state, known in zip(chains.alive, hidden, before, strict=True):
            if memory is not None:
                memory = memory[torch.searchsorted(living, alive)]
            y, memory = self._draft.markov_head.read(known, state, memory)
            found.append(y)
            living = alive
        return found

    def _with_confidence(
        self, verdict: Verdict, hidden: list[torch.Tensor], before: list[torch.Tensor], share: float
    ) -> Evaluation:
        """Add the cross-entropy of the foretold acceptance to the loss, each row with the weight it has there."""
        evaluation, measured = verdict.evaluation, dict(verdict.evaluation.measured)
        total, sums, counts = evaluation.loss, 0.0, 0.0
        for row, judged, state, known in zip(verdict.rows, verdict.judged, hidden, before, strict=True):
            foretold = self._draft.confidence(state, known)
            accepted = (1 - judged.terms["tv"]).clamp(0, 1).detach()
            values = functional.binary_cross_entropy_with_logits(foretold, accepted, reduction="none")
            total = total + self._confidence * torch.dot(values, row.weights)
            sums, counts = sums + float(values.detach().sum()), counts + len(values)
        measured |= {"confidence": (sums, counts), "loss": (float(total.detach()), share)}
        return replace(evaluation, loss=total, measured=measured)


Objective = DSparkObjective
