"""A mixture of experts in a draft's decoder layer: gated MLPs, of which a router gives each token a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from speculators.layers.decoder import GatedMLP
from speculators.verifiers.mixture import Mixture

if TYPE_CHECKING:
    from typing_extensions import Self

_NOT_ZERO = 1e-20


class Router(nn.Module):
    """Scores of experts; its sums are never taken in less than float32, as a rounded score chooses another expert."""

    e_score_correction_bias: torch.Tensor

    def __init__(self, hidden_size: int, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.weight = nn.Parameter(torch.zeros(mixture.count, hidden_size))
        if mixture.corrects:
            self.register_buffer("e_score_correction_bias", torch.zeros(mixture.count))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Change type and place of the weights, and only the place of the bias: rounded it would choose others."""
        kept = self.e_score_correction_bias if self.mixture.corrects else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if kept is not None:
            self.e_score_correction_bias = kept.to(self.weight.device)
        return self

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which experts the tokens `x` [n, h] meet, int64 [n, k], and how much each of these weighs, [n, k]."""
        mixture, wide = self.mixture, torch.promote_types(x.dtype, torch.float32)
        logits = functional.linear(x.to(wide), self.weight.to(wide))
        scores = logits.sigmoid() if mixture.corrects else logits.softmax(-1)
        chosen = self._choose(scores.detach())
        weights = scores.gather(1, chosen)
        if mixture.renormalizes:
            weights = weights / (weights.sum(-1, keepdim=True) + _NOT_ZERO)
        return chosen, weights * mixture.scale

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        mixture = self.mixture
        if mixture.corrects:
            scores = scores + self.e_score_correction_bias.to(scores.dtype)
        if mixture.groups > 1:
            groups = scores.view(len(scores), mixture.groups, -1)
            best = groups.topk(2, -1).values.sum(-1).topk(mixture.groups_per_token, -1).indices
            is_open = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter_(1, best, value=True)
            scores = groups.masked_fill(~is_open[..., None], float("-inf")).flatten(1)
        return scores.topk(mixture.per_token, -1).indices


class ExpertsMLP(nn.Module):
    """What stands in a decoder layer in the place of its MLP; names of parameters are those of Qwen's checkpoints."""

    def __init__(self, hidden_size: int, mixture: Mixture) -> None:
        super().__init__()
        self.gate = Router(hidden_size, mixture)
        self.experts = nn.ModuleList(GatedMLP(hidden_size, mixture.intermediate_size) for _ in range(mixture.count))
        self.shared_expert = GatedMLP(hidden_size, mixture.shared_size) if mixture.shared_size else None
        self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False) if mixture.gates_shared else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The experts' weighted sum, [..., h] of `x` [..., h], taken in float32 at least."""
        tokens = x.reshape(-1, x.shape[-1])
        chosen, weights = self.gate(tokens)
        order = chosen.flatten().argsort(stable=True)  # by expert; within one as the tokens stand
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        parts = torch.split(tokens[order // chosen.shape[1]], counts)
        done = [
            expert(part)
            for expert, part in zip(self.experts, parts, strict=True)
            # In training an expert without tokens has a gradient of zeros, in every process alike.
            if len(part) or torch.is_grad_enabled()
        ]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        found = torch.cat(done)[back].view(*chosen.shape, -1)
        mixed: torch.Tensor = (found * weights[..., None]).sum(1)
        if self.shared_expert is not None:
            mixed = mixed + self._shared(tokens)
        return mixed.to(x.dtype).view_as(x)

    def _shared(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self.shared_expert is not None  # noqa: S101  its caller has looked
        found: torch.Tensor = self.shared_expert(tokens)
        return found if self.shared_expert_gate is None else self.shared_expert_gate(tokens).sigmoid() * found
