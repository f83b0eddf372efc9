"""XPress's training: the refiner reads true tokens, then those that the draft itself chose; the head alone counts too.

The loss is that of the teacher-forced refiner, plus a share of the mean over free-running rounds (each reads what the
round before chose, as in drafting), plus a share of the head's alone. All of them are compared with the verifier's
distributions in one go. Without gradient, accuracy and acceptance are those of drafting's own passes.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from speculators.algorithms.base import Batch, Evaluation
from speculators.algorithms.chains import Chains
from speculators.algorithms.dflash.objective import BlockObjective, falling, slots
from speculators.algorithms.judging import Counted, chosen_otherwise
from speculators.algorithms.xpress.network import XPressNetwork
from speculators.algorithms.xpress.passes import free_running
from speculators.layers.products import rounded_weight
from speculators.layers.vocabulary import VerifierHead
from speculators.losses.chunked import chunk_size
from speculators.recipe.shapes.xpress import XPress


class XPressObjective(BlockObjective):
    """Loss, gradients and acceptance of an XPress draft on packed batches."""

    def __init__(
        self,
        network: XPressNetwork,
        options: XPress,
        verifier: VerifierHead,
        *,
        compute_dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        weights = falling(options.gamma, network.config.proposed)
        super().__init__(network, options, weights, verifier, compute_dtype=compute_dtype, chunk=chunk)
        self._draft, self._options = network, options

    def _judged_blocks(self, batch: Batch, chains: Chains, counted: Counted, states: torch.Tensor) -> Evaluation:
        refiner, config = self._draft.refiner_head, self._draft.config
        anchors, before_anchor = batch.input_ids[chains.roots + 1], before_anchors(batch, chains)
        whole = torch.cat([self._head, rounded_weight(refiner.readout).to(self._head.dtype)], 1)

        def likeliest(states: torch.Tensor, u: torch.Tensor | None) -> torch.Tensor:
            read = states.detach() if u is None else torch.cat([states.detach(), u], -1)
            return self._likeliest(read, whole[:, : read.shape[-1]])

        def reading(u: torch.Tensor) -> list[torch.Tensor]:
            return slots(chains, torch.cat([states, u], -1), config)

        places = chains.roots[:, None] + torch.arange(config.block_size)
        before = batch.input_ids[places.clamp_(max=batch.tokens - 1)]  # what lies beyond an answer is not judged
        before[:, 0] = before_anchor
        forced = reading(refiner(refiner.summary(states), before))
        head = refiner.readout.weight, whole
        if not torch.is_grad_enabled():
            *_, last = free_running(refiner, states, anchors, before_anchor, likeliest, config.num_jacobi_passes)
            evaluation = self.judge.judge(batch, chains, counted, forced, head).evaluation
            return chosen_otherwise(batch, chains, evaluation, slots(chains, likeliest(states, last), config))
        asked, beside = self._options.free_running, []
        if asked.rounds and asked.weight:
            rounds = free_running(refiner, states, anchors, before_anchor, likeliest, asked.rounds)
            beside = [(asked.weight / asked.rounds, reading(u)) for u in rounds]
        if self._options.base_weight:
            alone = states.new_zeros(*states.shape[:-1], config.xpress_rank)
            beside.append((self._options.base_weight, reading(alone)))
        return self.judge.judge(batch, chains, counted, forced, head, beside=beside).evaluation

    @torch.no_grad()
    def _likeliest(self, read: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The likeliest token after every slot, verifier ids int64 [n, B], never all logits at once."""
        size = chunk_size(weight, self.judge.chunk)
        parts = torch.split(read.flatten(0, 1).to(weight.dtype), size)
        ids = torch.cat([functional.linear(part, weight).argmax(-1) for part in parts]).view(read.shape[:2])
        rows = self._draft.target_ids
        return ids if rows is None else rows[ids]


def before_anchors(batch: Batch, chains: Chains) -> torch.Tensor:
    """The token before every chain's newest one, int64 [A]; at a document's first position, the newest itself.

    (There the embedded engine does not know it either.)
    """
    is_first = (chains.roots == chains.starts[chains.in_context]).to(batch.input_ids.device)
    return torch.where(is_first, batch.input_ids[chains.roots + 1], batch.input_ids[chains.roots])


Objective = XPressObjective
