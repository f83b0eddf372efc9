"""The verifier's head as a teacher: its final norm and the rows of its head that the draft's vocabulary has.

The full vocabulary is touched only when the teacher's probabilities must not be renormalised, and then only to learn
how much of the probability lies inside the draft's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional


@dataclass(frozen=True)
class VerifierHead:
    """What turns the stream before the verifier's final norm into logits.

    `norm` [h] is the factor applied after normalising (Gemma's 1 + w already added); `softcap` and `scale` are those of
    verifiers that bend their logits: `softcap * tanh(scale * z / softcap)`.
    """

    weight: torch.Tensor
    """[V, h]"""
    norm: torch.Tensor
    eps: float
    scale: float = 1.0
    softcap: float | None = None

    def normed(self, last: torch.Tensor) -> torch.Tensor:
        """The verifier's final norm of `last` [..., h], in at least float32."""
        wide = last.to(torch.promote_types(last.dtype, self.norm.dtype))
        return functional.rms_norm(wide, (wide.shape[-1],), self.norm.to(wide.dtype), self.eps)

    def bend(self, products: torch.Tensor) -> torch.Tensor:
        """Logits from plain head products."""
        if self.scale != 1.0:
            products = products * self.scale
        if self.softcap is not None:
            products = torch.tanh(products / self.softcap) * self.softcap
        return products


class Teacher:
    """Teacher distributions from pre-norm streams, on demand and without gradient."""

    def __init__(
        self,
        head: VerifierHead,
        rows: torch.Tensor | None,
        *,
        with_mass: bool = False,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`rows` int64 [Vd] are the verifier ids of the draft's vocabulary; None is all of them.

        `with_mass` also computes how much probability lies outside, at the price of the full vocabulary's products.
        `compute_dtype` is the type of the products' operands.
        """
        self._rows = (head.weight if rows is None else head.weight[rows]).to(compute_dtype)
        self._all = head.weight.to(compute_dtype) if with_mass and rows is not None else None
        self._head = replace(head, weight=self._rows)  # the whole head is large, and held only where it is needed

    @torch.no_grad()
    def __call__(self, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [n, Vd] after the positions whose streams `last` [n, h] are, over the draft's vocabulary.

        And the log-sum-exp [n] over the verifier's whole vocabulary; None when it was not asked for or is the same.
        """
        normed = self._head.normed(last)
        total = None if self._all is None else self._logits(normed, self._all).logsumexp(-1)
        return self._logits(normed, self._rows), total

    def _logits(self, normed: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._head.bend(functional.linear(normed.to(rows.dtype), rows).to(normed.dtype))
