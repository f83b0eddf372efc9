"""Attention along chains and in blocks by FlexAttention: one call for all documents of a batch.

FlexAttention attends to the prefix, whose tiles that no query sees are never computed, and returns the log-sum-exp of
its scores. What a query sees of its own chain or block is a few scores more, made by ordinary operations. With a and b
the log-sum-exps of both parts, the softmax over both together is their mean, weighed by sigmoid(a - b) and
sigmoid(b - a); gradients flow through all of it. A query that sees none of the prefix has a = -inf and weighs it by 0.

It is meant to be compiled, each of `Kernels` as a whole: then scores are never kept, in the forward pass or for the
backward pass, and the operations after the kernel are fused. Torch compiles it for GPUs alone; on a CPU it computes the
same from dense scores, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions, flex_attention

from speculators.layers.block_attention import Window
from speculators.layers.documents import Documents
from speculators.layers.key_ranges import prefix_mask

KERNEL: FlexKernelOptions = {"FORCE_USE_FLEX_ATTENTION": True}
"""Never the kernel for few queries: whether it is taken would depend on lengths, and so compile anew."""


def attend_prefix(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> torch.Tensor:
    """Attend `q` [n, heads, d] to `k` and `v` [s, kv, d] under `mask`: [n, heads, d]."""
    q, k, v = _by_head(q, k, v)
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=KERNEL)[0].transpose(0, 1)


def attend_chains(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own_k: torch.Tensor, own_v: torch.Tensor, mask: BlockMask
) -> torch.Tensor:
    """Attend `q` [n, heads, d] to `k` and `v` [s, kv, d] under `mask` and to its chain's own, [n, steps, kv, d] each.

    Returns [n, heads, d].
    """
    before, before_lse = _prefix(q, k, v, mask)
    wide = before_lse.dtype
    grouped = q.reshape(len(q), 1, k.shape[1], -1, q.shape[2])  # [n, 1, kv, r, d]
    scores = (grouped.to(wide) * own_k[:, :, :, None].to(wide)).sum(-1) * q.shape[-1] ** -0.5  # [n, steps, kv, r]
    own = (scores.softmax(1)[..., None] * own_v[:, :, :, None]).sum(1)  # [n, kv, r, d]
    return _merged(before, before_lse, own.flatten(1, 2), scores.logsumexp(1).flatten(1, 2))


def attend_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    own_k: torch.Tensor,
    own_v: torch.Tensor,
    mask: BlockMask,
    inside: torch.Tensor | None,
) -> torch.Tensor:
    """Attend `q` [n, B, heads, d] to `k` and `v` [s, kv, d] under `mask` and to its own block's, [n, B, kv, d] each.

    `mask` is of the n * B queries one after another; `inside` bool [B, B] says which of its block's keys a query sees,
    None all. Returns [n, B, heads, d].
    """
    n, width, heads, d = q.shape
    groups = k.shape[1]
    before, before_lse = _prefix(q.flatten(0, 1), k, v, mask)
    rows = q.reshape(n, width, groups, -1, d).permute(0, 2, 3, 1, 4).reshape(n, groups, -1, d)  # [n, kv, r * B, d]
    scores = torch.matmul(rows, own_k.permute(0, 2, 3, 1)).to(before_lse.dtype) * d**-0.5
    scores = scores.view(n, groups, -1, width, width)  # [n, kv, r, B, B]
    if inside is not None:
        scores = scores.masked_fill(~inside, float("-inf"))
    shares = scores.softmax(-1).to(q.dtype).flatten(2, 3)
    own = torch.matmul(shares, own_v.transpose(1, 2)).view(n, groups, -1, width, d).permute(0, 3, 1, 2, 4)
    own_lse = scores.logsumexp(-1).permute(0, 3, 1, 2)  # [n, B, kv, r]
    merged = _merged(before, before_lse, own.reshape(-1, heads, d), own_lse.reshape(-1, heads))
    return merged.view(n, width, heads, d)


@dataclass(frozen=True)
class Kernels:
    """What is compiled; as it is unless `compiled`."""

    prefix: Callable[..., torch.Tensor] = attend_prefix
    chains: Callable[..., torch.Tensor] = attend_chains
    blocks: Callable[..., torch.Tensor] = attend_blocks

    @classmethod
    def compiled(cls, backend: str = "inductor") -> Kernels:
        """Compiled by torch.compile's `backend`, once for batches of all sizes."""
        prefix, chains, blocks = (
            torch.compile(one, dynamic=True, fullgraph=True, backend=backend)
            for one in (attend_prefix, attend_chains, attend_blocks)
        )
        return cls(prefix, chains, blocks)


AS_THEY_ARE = Kernels()


def flexible_chain_attention(
    q: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor] | None,
    documents: Documents,
    kernels: Kernels = AS_THEY_ARE,
) -> torch.Tensor:
    """What `chain_attention` returns for these arguments."""
    _same_in_all_batches(2, q, *prefix, *(own or ()))
    mask = prefix_mask(documents, len(prefix[0]), q.device)
    return kernels.prefix(q, *prefix, mask) if own is None else kernels.chains(q, *prefix, *own, mask)


def flexible_block_attention(
    q: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor],
    documents: Documents,
    window: Window | None = None,
    kernels: Kernels = AS_THEY_ARE,
) -> torch.Tensor:
    """What `block_attention` returns for these arguments."""
    _same_in_all_batches(2, *prefix)
    _same_in_all_batches(3, q, *own)
    width, inside = q.shape[1], None
    if window is not None:
        slots = torch.arange(width, device=q.device)
        inside = window.sees(slots[:, None], slots)
    mask = prefix_mask(documents, len(prefix[0]), q.device, width, window)
    return kernels.blocks(q, *prefix, *own, mask, inside)


def _same_in_all_batches(dimensions: int, *tensors: torch.Tensor) -> None:
    """Tell the compiler that the last so many dimensions, numbers of heads and so on, need no graph for all sizes."""
    for one in tensors:
        torch._dynamo.mark_static(one, list(range(one.dim() - dimensions, one.dim())))


def _by_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[n, heads, d] each -> [1, heads, n, d]."""
    return q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]


def _prefix(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the prefix alone, [n, heads, d], and the log-sum-exp of its scores, [n, heads]."""
    q, k, v = _by_head(q, k, v)
    lse = AuxRequest(lse=True)
    attended, more = flex_attention(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=KERNEL, return_aux=lse)
    assert more.lse is not None  # noqa: S101  it was asked for
    return attended[0].transpose(0, 1), more.lse[0].transpose(0, 1)


def _merged(before: torch.Tensor, before_lse: torch.Tensor, own: torch.Tensor, own_lse: torch.Tensor) -> torch.Tensor:
    """Two attentions [n, heads, d] as one over both parts, by the log-sum-exps [n, heads] of their scores."""
    share = torch.sigmoid(before_lse - own_lse)[..., None]
    return (share * before + (1 - share) * own).to(before.dtype)
