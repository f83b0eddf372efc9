"""Muon: steps of momentum whose singular values are all brought near one, for the hidden matrices of a network.

Torch has the same optimizer, with its products in bfloat16 whatever the processor. On a CPU without units for that
these products took nineteen twentieths of a training step; so here they are taken where `product_dtype` says. In
bfloat16 the steps are torch's, bit for bit. Formulas: Jordan et al., "Muon: An optimizer for hidden layers in neural
networks"; the scale of the steps: Liu et al., "Muon is Scalable for LLM Training", 2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from speculators.layers.products import product_dtype
from speculators.training.sharding import divided_like, whole

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree five that moves singular values towards one."""
SMALLEST_NORM = 1e-7
RMS_OF_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, in steps as large as AdamW's; weight decay is decoupled."""

    def __init__(self, matrices: Sequence[torch.Tensor], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change every matrix that has a gradient; a closure is not called."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._step(matrix, matrix.grad, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, matrix: torch.Tensor, gradient: torch.Tensor, rate: float, decay: float, momentum: float) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: torch.Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        # A divided matrix is put together for this: its singular values are those of the whole.
        direction = divided_like(orthogonalized(whole(gradient.lerp(average, momentum))), matrix)
        matrix.mul_(1 - rate * decay)
        matrix.add_(direction, alpha=-rate * RMS_OF_ADAMW * math.sqrt(max(matrix.shape)))


def orthogonalized(matrix: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`matrix` [m, n] with singular values between about 0.7 and 1.2, in the type of its products.

    `dtype` is that type; None is bfloat16 where the device has units for it.
    """
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).to(
        dtype or product_dtype(torch.bfloat16, matrix.device)
    )
    x = wide / wide.norm().clamp(min=SMALLEST_NORM)
    one, three, five = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=three, alpha=five), x, beta=one)
    result: torch.Tensor = x if matrix.shape[0] <= matrix.shape[1] else x.T
    return result
