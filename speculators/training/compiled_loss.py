"""The comparison of distributions, compiled: a chunk's logits are passed over a few times, not once an operation.

On a GPU that is a Triton kernel or two, with the cast of the logits before and of their gradient after. The verifier's
distribution is made again for every step of a chain: passing over its logits takes no longer than over what was kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from speculators.losses.distributions import Compared, Target, compare
from speculators.training.first_failure import FirstFailure


class CompiledComparison:
    """`compare`, compiled once for chunks of all sizes, and as it is once something has failed."""

    def __init__(self, failed: FirstFailure, backend: str = "inductor") -> None:
        self._failed = failed
        self._compiled = torch.compile(_compare_parts, dynamic=True, fullgraph=True, backend=backend)

    def __call__(
        self, logits: torch.Tensor, target: Target, losses: Mapping[str, float], dtype: torch.dtype
    ) -> Compared:
        """`losses.distributions.compare`."""
        if self._failed.is_told or len(logits) < 2:  # a single row would be another graph
            return compare(logits, target, losses, dtype)
        for one in (logits, target.logits):
            torch._dynamo.mark_static(one, 1)  # the vocabulary
        parts = target.logits, target.log_total, target.following, target.is_renormalized
        try:
            values, gradient, terms, best = self._compiled(logits, *parts, tuple(losses.items()), dtype)
        except Exception as error:  # noqa: BLE001  the plain way is always right
            self._failed.tell(error)
            return compare(logits, target, losses, dtype)
        return Compared(values, gradient, dict(zip(losses, terms, strict=True)), best)


def _compare_parts(
    logits: torch.Tensor,
    target_logits: torch.Tensor,
    log_total: torch.Tensor | None,
    following: torch.Tensor | None,
    is_renormalized: bool,
    losses: tuple[tuple[str, float], ...],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """`compare`, of the tensors that a `Target` is made of."""
    found = compare(logits, Target(target_logits, log_total, is_renormalized, following), dict(losses), dtype)
    return found.values, found.gradient, list(found.terms.values()), found.best
