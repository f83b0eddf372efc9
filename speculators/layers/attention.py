"""Attention along chains: a query sees the keys of its document up to its root, and the keys its own chain drafted.

No query ever sees another chain's drafted keys, so the prefix is one product per document and the chain's own part a
few scalar products per query. Two exact ways to the same result:

* plain: all scores of a document at once, own ones in extra columns; fastest for the lengths most documents have;
* fused (CPU): torch's flash kernel over the prefix, which returns its log-sum-exp, merged with the own scores; the
  backward pass calls the kernel's backward with the merged output and log-sum-exp, as ring attention does. Memory
  does not grow with the square of the length.

Where the fused way is not (on a GPU), the scores of a long document are computed a second time in the backward pass;
`flexible_attention.py` is another way there, compiled. Either way a long document's queries are divided: few of them
have little of scores and masks at a time, and the early ones need no keys from the end.
Grouped heads are never repeated: the heads of a group are more rows of the same product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from speculators.layers.documents import Documents, DocumentSpan

PLAIN_SCORES = 1 << 25
"""Scores of a document (heads * queries * keys) above which they are not kept for backward: 64 MiB in bfloat16."""
PART_SCORES, GPU_PART_SCORES = 1 << 25, 1 << 27
"""Scores of a part of a longer document."""


def chain_attention(
    q: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor] | None,
    documents: Documents,
    fused: bool | None = None,
) -> torch.Tensor:
    """Attend `q` [n, heads, d] to `prefix` keys and values, [s, kv, d] each, and to `own`, [n, steps, kv, d] each.

    Returns [n, heads, d]. Softmax is over both parts together, scaled by 1/sqrt(d). `fused` forces one of the two
    ways; None chooses by size and device.
    """
    if own is None:
        nothing = q.new_empty(len(q), 0, *prefix[0].shape[1:])
        own = nothing, nothing
    result: torch.Tensor = _ChainAttention.apply(q, *prefix, *own, documents, fused)  # type: ignore[no-untyped-call]
    return result


class _ChainAttention(torch.autograd.Function):
    """All documents of a batch in one node of the graph.

    Saves probabilities (plain), nothing (plain, of a long document) or log-sum-exps (fused).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        own_k: torch.Tensor,
        own_v: torch.Tensor,
        documents: Documents,
        fused: bool | None,
    ) -> torch.Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        kept: list[torch.Tensor] = []
        ways: list[bool] = []
        for piece in _pieces(documents, q):
            part = _Part.of(q, k, v, own_k, own_v, piece)
            is_fused = fused if fused is not None else q.device.type == "cpu" and piece.is_long
            attended, saved = _fused(part) if is_fused else _plain(part)
            out[piece.span.queries] = part.merge_heads(attended)
            kept.append(saved if is_fused or not piece.is_long else saved.new_empty(0))
            ways.append(is_fused)
        ctx.save_for_backward(q, k, v, own_k, own_v, out, *kept)
        ctx.documents, ctx.ways = documents, ways
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, own_k, own_v, out, *kept = ctx.saved_tensors
        pieces = _pieces(ctx.documents, q)
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        # Keys after the last document's last root belong to no span; they get no gradient. Sums over parts are float32.
        summed = torch.float32 if any(piece.is_long for piece in pieces) and k.dtype.itemsize < 4 else k.dtype
        grad_k, grad_v = torch.zeros_like(k, dtype=summed), torch.zeros_like(v, dtype=summed)
        grad_own_k, grad_own_v = torch.empty_like(own_k), torch.empty_like(own_v)
        for piece, is_fused, saved in zip(pieces, ctx.ways, kept, strict=True):
            part, rows = _Part.of(q, k, v, own_k, own_v, piece), piece.span.queries
            gradient = part.split_heads(gradients[0][rows].to(q.dtype))
            attended = part.split_heads(out[rows])
            if is_fused:
                one = _fused_backward(part, gradient, attended, saved)
            else:
                one = _plain_backward(part, gradient, attended, saved if saved.numel() else _plain(part)[1])
            grad_q[rows] = part.merge_heads(one.q)
            grad_k[piece.span.keys] += one.k.transpose(0, 1)
            grad_v[piece.span.keys] += one.v.transpose(0, 1)
            grad_own_k[rows] = one.own_k.permute(1, 2, 0, 3)
            grad_own_v[rows] = one.own_v.permute(1, 2, 0, 3)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_own_k, grad_own_v, None, None


@dataclass(frozen=True)
class _Piece:
    """A document, or a part of a long one, and how far each of its queries sees, on the queries' device."""

    span: DocumentSpan
    visible: torch.Tensor
    is_long: bool


def _pieces(documents: Documents, q: torch.Tensor) -> tuple[_Piece, ...]:
    """What is attended to at a time, for queries [n, heads, d]."""
    heads, device = q.shape[1], q.device
    limit = (PART_SCORES if device.type == "cpu" else GPU_PART_SCORES) // heads

    def divide() -> Iterator[_Piece]:
        for document, visible in zip(documents, documents.visible(device), strict=True):
            is_long = heads * len(visible) * (document.keys.stop - document.keys.start) > PLAIN_SCORES
            spans = tuple(document.parts(limit)) if is_long else (document,)
            sizes = [len(span.visible) for span in spans]
            yield from (_Piece(*both, is_long) for both in zip(spans, torch.split(visible, sizes), strict=True))

    found: tuple[_Piece, ...] = documents.once((device, heads, limit, PLAIN_SCORES), lambda: tuple(divide()))
    return found


@dataclass(frozen=True)
class _Part:
    """A piece's tensors with heads in front: kv groups of r heads."""

    q: torch.Tensor  # [kv, r, n, d]
    k: torch.Tensor  # [kv, s, d]
    v: torch.Tensor  # [kv, s, d]
    own_k: torch.Tensor  # [kv, n, steps, d]
    own_v: torch.Tensor  # [kv, n, steps, d]
    visible: torch.Tensor  # [n]

    @classmethod
    def of(
        cls,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        own_k: torch.Tensor,
        own_v: torch.Tensor,
        piece: _Piece,
    ) -> _Part:
        kv, rows, keys = k.shape[1], piece.span.queries, piece.span.keys
        return cls(
            q=q[rows].view(len(piece.visible), kv, -1, q.shape[2]).permute(1, 2, 0, 3).contiguous(),
            k=k[keys].transpose(0, 1),
            v=v[keys].transpose(0, 1),
            own_k=own_k[rows].permute(2, 0, 1, 3),
            own_v=own_v[rows].permute(2, 0, 1, 3),
            visible=piece.visible,
        )

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.q.shape[-1])

    @property
    def steps(self) -> int:
        return self.own_k.shape[2]

    def split_heads(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, heads, d] -> [kv, r, n, d]."""
        return rows.reshape(len(rows), self.k.shape[0], -1, rows.shape[2]).permute(1, 2, 0, 3)

    def merge_heads(self, grouped: torch.Tensor) -> torch.Tensor:
        """[kv, r, n, d] -> [n, heads, d]."""
        return grouped.permute(2, 0, 1, 3).flatten(1, 2)

    def own_scores(self) -> torch.Tensor:
        """Scaled scores with the chain's own keys, [kv, r, n, steps]."""
        return (self.q[:, :, :, None] * self.own_k[:, None]).sum(-1) * self.scale

    def mask(self, extra: int, repeats: int) -> torch.Tensor:
        """0 where a query sees a key, minus infinity elsewhere, [repeats * n, s + extra]; extra columns are seen."""
        keys = torch.arange(self.k.shape[1] + extra, device=self.q.device)
        hidden = (keys >= self.visible[:, None]) & (keys < self.k.shape[1])
        mask = self.q.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        return mask.repeat(repeats, 1)


@dataclass(frozen=True)
class _Gradients:
    q: torch.Tensor  # [kv, r, n, d]
    k: torch.Tensor  # [kv, s, d]
    v: torch.Tensor  # [kv, s, d]
    own_k: torch.Tensor  # [kv, n, steps, d]
    own_v: torch.Tensor  # [kv, n, steps, d]


def _plain(part: _Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one piece and its probabilities [kv, r, n, s + steps]; own scores are the last columns."""
    kv, r, n, d = part.q.shape
    s, steps = part.k.shape[1], part.steps
    # Zero keys make room for the own columns, so that scores and probabilities are one tensor without a copy.
    keys = functional.pad(part.k, (0, 0, 0, steps))
    mask = part.mask(steps, r).expand(kv, r * n, s + steps)
    scores = torch.baddbmm(mask, part.q.view(kv, r * n, d), keys.transpose(1, 2), alpha=part.scale)
    if steps:
        scores[:, :, s:] = part.own_scores().view(kv, r * n, steps)
    probabilities = scores.softmax(-1)
    attended = torch.bmm(probabilities, functional.pad(part.v, (0, 0, 0, steps))).view(kv, r, n, d)
    probabilities = probabilities.view(kv, r, n, s + steps)
    if steps:
        attended = attended + (probabilities[..., s:, None] * part.own_v[:, None]).sum(-2)
    return attended, probabilities


def _plain_backward(
    part: _Part, gradient: torch.Tensor, attended: torch.Tensor, probabilities: torch.Tensor
) -> _Gradients:
    kv, r, n, d = part.q.shape
    s, steps = part.k.shape[1], part.steps
    rows = gradient.reshape(kv, r * n, d)
    to_probabilities = torch.bmm(rows, functional.pad(part.v, (0, 0, 0, steps)).transpose(1, 2)).view(kv, r, n, -1)
    if steps:
        to_probabilities[..., s:] = (gradient[:, :, :, None] * part.own_v[:, None]).sum(-1)
    to_scores = torch._softmax_backward_data(to_probabilities, probabilities, -1, probabilities.dtype)
    flat = to_scores.view(kv, r * n, s + steps)
    to_q = torch.bmm(flat, functional.pad(part.k, (0, 0, 0, steps))).view(kv, r, n, d) * part.scale
    to_k = torch.bmm(flat.transpose(1, 2), part.q.view(kv, r * n, d))[:, :s] * part.scale
    to_v = torch.bmm(probabilities.view(kv, r * n, s + steps).transpose(1, 2), rows)[:, :s]
    own = _own_gradients(part, gradient, probabilities[..., s:], to_scores[..., s:])
    return _Gradients(to_q + own[0] if steps else to_q, to_k, to_v, *own[1:])


def _own_gradients(
    part: _Part, gradient: torch.Tensor, probabilities: torch.Tensor, to_scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients through the chain's own part, to q, own_k and own_v; the last two arguments are [kv, r, n, steps]."""
    scaled = to_scores[..., None] * part.scale
    to_q = (scaled * part.own_k[:, None]).sum(-2)
    to_own_k = (scaled * part.q[:, :, :, None]).sum(1)
    to_own_v = (probabilities[..., None] * gradient[:, :, :, None]).sum(1)
    return to_q, to_own_k, to_own_v


def _fused(part: _Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one piece and the log-sum-exp of all its scores, [kv, r, n]."""
    kv, r, n, d = part.q.shape
    attended, prefix_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        part.q.view(1, kv, r * n, d),
        part.k[None],
        part.v[None],
        0.0,
        False,
        attn_mask=part.mask(0, r),
        scale=part.scale,
    )
    attended, lse = attended.view(kv, r, n, d), prefix_lse.view(kv, r, n)
    if part.steps:
        scores = part.own_scores().to(lse.dtype)
        total = torch.logsumexp(torch.cat([lse[..., None], scores], -1), -1)
        share = (scores - total[..., None]).exp()
        own = (share[..., None] * part.own_v[:, None]).sum(-2)
        attended = (attended * (lse - total).exp()[..., None] + own).to(part.q.dtype)
        lse = total
    return attended, lse


def _fused_backward(part: _Part, gradient: torch.Tensor, attended: torch.Tensor, lse: torch.Tensor) -> _Gradients:
    kv, r, n, d = part.q.shape
    rows = gradient.reshape(1, kv, r * n, d)
    to_q, to_k, to_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        rows,
        part.q.view(1, kv, r * n, d),
        part.k[None],
        part.v[None],
        attended.reshape(1, kv, r * n, d),
        lse.view(1, kv, r * n),
        0.0,
        False,
        attn_mask=part.mask(0, r),
        scale=part.scale,
    )
    probabilities = (part.own_scores().to(lse.dtype) - lse[..., None]).exp()
    through = (gradient[:, :, :, None] * part.own_v[:, None]).sum(-1) - (gradient * attended).sum(-1, keepdim=True)
    to_scores = (probabilities * through).to(part.q.dtype)
    own = _own_gradients(part, gradient, probabilities.to(part.q.dtype), to_scores)
    return _Gradients(to_q.view(kv, r, n, d) + own[0], to_k[0], to_v[0], *own[1:])
