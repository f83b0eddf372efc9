"""Drafting with DFlash-2: a block at once, and a walk through its candidates by the selector."""

from __future__ import annotations

import torch

from speculators.algorithms.dflash.proposal import Choose, DFlashProposal
from speculators.algorithms.dflash2.network import DFlash2Network


class DFlash2Proposal(DFlashProposal):
    """A network for inference; `decoding/models.py` says what its methods promise."""

    def __init__(self, network: DFlash2Network, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__(network, compute_dtype)
        self._draft = network

    def _choose(self, hidden: torch.Tensor, newest: torch.Tensor, choose: Choose | None) -> torch.Tensor:
        """What is drawn is drawn from the candidates alone: every other token has no chance."""
        logits, before = self._head(hidden), newest.to(hidden.device)
        own, candidates = logits.topk(self._draft.config.selector_top_k, -1)
        chain: list[torch.Tensor] = []
        for slot in range(logits.shape[1]):
            scores = own[:, slot] + self._draft.candidate_selector(hidden[:, slot], before, candidates[:, slot])
            if choose is None:
                before = candidates[:, slot].gather(-1, scores.argmax(-1, keepdim=True))[:, 0]
            else:
                whole = torch.full_like(logits[:, slot], float("-inf"))
                before = choose(whole.scatter_(-1, candidates[:, slot], scores.to(whole.dtype)))
            chain.append(before)
        return torch.stack(chain, 1)


Proposal = DFlash2Proposal
