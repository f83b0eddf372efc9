"""Drafting with DSpark: a block at once, as DFlash's, and its tokens chosen one after another by the Markov head."""

from __future__ import annotations

import torch

from speculators.algorithms.dflash.proposal import Choose, DFlashProposal
from speculators.algorithms.dspark.network import DSparkNetwork
from speculators.layers.packed_linear import merge_linears


class DSparkProposal(DFlashProposal):
    """A network for inference; `decoding/models.py` says what its methods promise."""

    def __init__(self, network: DSparkNetwork, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__(network, compute_dtype)
        self._draft = network
        self._bias = merge_linears([network.markov_head.markov_w2], compute_dtype)

    def _choose(self, hidden: torch.Tensor, newest: torch.Tensor, choose: Choose | None) -> torch.Tensor:
        base, before = self._head(hidden), newest.to(hidden.device)
        chain: list[torch.Tensor] = []
        for slot in range(base.shape[1]):
            logits = base[:, slot] + self._bias(self._draft.markov(before))
            ids = logits.argmax(-1) if choose is None else choose(logits)
            before = ids if self.target_ids is None else self.target_ids[ids]
            chain.append(before)
        return torch.stack(chain, 1)


Proposal = DSparkProposal
