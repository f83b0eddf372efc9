"""FlexAttention, compiled, where a network's training attends: as long as it compiles, and plainly after that.

Batches of less than a tile are attended to plainly as well: nothing is to be gained, and they would be other graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from speculators.layers.attention import chain_attention
from speculators.layers.block_attention import Window, block_attention
from speculators.layers.documents import Documents
from speculators.layers.flexible_attention import Kernels, flexible_block_attention, flexible_chain_attention
from speculators.layers.key_ranges import TILE
from speculators.training.first_failure import FirstFailure

KeysValues = tuple[torch.Tensor, torch.Tensor]


class CompiledAttention:
    """Both attentions of a `DraftNetwork`; `backend` is torch.compile's."""

    def __init__(self, failed: FirstFailure, backend: str = "inductor") -> None:
        self._failed = failed
        self._kernels = Kernels.compiled(backend)
        self._tried: set[tuple[Any, ...]] = set()

    def chain_attention(
        self, q: torch.Tensor, prefix: KeysValues, own: KeysValues | None, documents: Documents
    ) -> torch.Tensor:
        """`layers.attention.chain_attention`."""
        plain = partial(chain_attention, documents=documents)
        flexible = partial(flexible_chain_attention, documents=documents, kernels=self._kernels)
        kind = ("chains", 0 if own is None else min(2, own[0].shape[1]))
        return self._one_of(flexible, plain, kind, q, prefix, own)

    def block_attention(
        self, q: torch.Tensor, prefix: KeysValues, own: KeysValues, documents: Documents, window: Window | None = None
    ) -> torch.Tensor:
        """`layers.block_attention.block_attention`."""
        plain = partial(block_attention, documents=documents, window=window)
        flexible = partial(flexible_block_attention, documents=documents, window=window, kernels=self._kernels)
        return self._one_of(flexible, plain, ("blocks", window is None), q, prefix, own)

    def _one_of(
        self,
        flexible: Callable[..., torch.Tensor],
        plain: Callable[..., torch.Tensor],
        kind: tuple[Any, ...],
        q: torch.Tensor,
        prefix: KeysValues,
        own: KeysValues | None,
    ) -> torch.Tensor:
        """The result of `flexible` where that is wanted and works, else of `plain`."""
        queries = q.shape[:-2].numel()
        if self._failed.is_told or len(q) < 2 or min(queries, len(prefix[0])) <= TILE:
            return plain(q, prefix, own)
        try:
            if torch.is_grad_enabled() and kind not in self._tried:
                _try(flexible, q, prefix, own)
                self._tried.add(kind)
            return flexible(q, prefix, own)
        except Exception as error:  # noqa: BLE001  the plain way is always right
            result = plain(q, prefix, own)
            self._failed.tell(error)
            return result


def _try(flexible: Callable[..., torch.Tensor], q: torch.Tensor, prefix: KeysValues, own: KeysValues | None) -> None:
    """Both passes, on copies: the backward pass is compiled when it first runs, and there nothing could be mended."""
    q, *others = (one.detach().clone().requires_grad_() for one in (q, *prefix, *(own or ())))
    out = flexible(q, (others[0], others[1]), (others[2], others[3]) if own is not None else None)
    torch.autograd.grad(out.sum(), (q, *others))
