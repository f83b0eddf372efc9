"""Drafting with DFlash: one pass over a block, whose keys are the verifier's states and the block's own.

Position t of the cache holds, for every layer, the keys and values made from the verifier's streams at t. A round
adds those committed since the last one; then the block at the newest token is computed and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.layers.packed_linear import merge_linears
from speculators.layers.rotary import rotate
from speculators.layers.slot_cache import Place, SlotCache

Choose = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Products:
    """The matrices of one layer as few, packed products."""

    queries: nn.Module
    keys_values: nn.Module
    out: nn.Module
    gate_up: nn.Module
    down: nn.Module


class DFlashProposal:
    """A network for inference; `decoding/models.py` says what its methods promise.

    The weights are copied into packed layouts (`compute_dtype`: type of the products, None the network's own).
    """

    drafts_at_once = True

    def __init__(self, network: DFlashNetwork, compute_dtype: torch.dtype | None = None) -> None:
        self._network, self.config = network, network.config
        self.target_ids = network.target_ids
        self._heads, self._groups = network.config.attention_heads, network.config.key_value_heads
        with torch.no_grad():
            self._layers = [_products(network, number, compute_dtype) for number in range(network.config.layers)]
            self._fc = merge_linears([network.fc], compute_dtype)
            self._head = merge_linears([_head(network)], compute_dtype)

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Ids of the verifier's streams that make the features, in their order."""
        return self.config.aux_layers

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` sequences of at most `capacity` positions."""
        weight = self._network.norm.weight
        self._network.tables(torch.arange(capacity, device=weight.device), capacity - 1)
        size = self.config.head_dim
        return SlotCache(len(self._layers), slots, self._groups, size, capacity, weight.dtype, weight.device)

    @torch.no_grad()
    def read(self, cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        """Read positions with features `aux` [B, m, F]; the tokens after them do not matter."""
        self._read(cache, rows, aux)

    @torch.no_grad()
    def propose(
        self,
        cache: SlotCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Choose | None,
    ) -> torch.Tensor:
        """Read the first `counts[b]` of each row's new positions, then draft `k` tokens: verifier ids int64 [B, k]."""
        hidden, newest = self._predicting(cache, rows, next_ids, aux, lengths, counts, k)
        return self._choose(hidden, newest, choose)

    def _predicting(
        self,
        cache: SlotCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read as `propose` does; the normed states [B, k, h] of the slots that predict, and the anchors [B]."""
        self._read(cache, rows, aux)
        cache.crop(rows, [length + count for length, count in zip(lengths, counts, strict=True)])
        last = torch.tensor([max(count, 1) - 1 for count in counts], device=next_ids.device)
        newest = next_ids[torch.arange(len(counts), device=next_ids.device), last]
        first = self.config.block_size - self.config.proposed
        return self._block(cache, rows, newest, k + first)[:, first:], newest

    def _choose(self, hidden: torch.Tensor, newest: torch.Tensor, choose: Choose | None) -> torch.Tensor:
        """Verifier ids [B, k] from the normed states [B, k, h] of the slots that predict."""
        logits = self._head(hidden)
        ids = [logits[:, j].argmax(-1) if choose is None else choose(logits[:, j]) for j in range(logits.shape[1])]
        chosen = torch.stack(ids, 1)
        return chosen if self.target_ids is None else self.target_ids[chosen]

    def _read(self, cache: SlotCache, rows: torch.Tensor, aux: torch.Tensor) -> None:
        network, place = self._network, cache.place(rows, aux.shape[1])
        aux = aux.to(network.norm.weight.dtype)
        context = network.hidden_norm(self._fc(aux).to(aux.dtype))
        for number, products in enumerate(self._layers):
            self._write(cache, place, number, products.keys_values(context))
        cache.advance(rows, place.width)

    def _write(
        self, cache: SlotCache, place: Place, number: int, keys_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the keys and values [B, q, 2 * kv * d] of new positions in their place; all so far, [B, kv, L, d]."""
        heads = keys_values.view(*keys_values.shape[:2], 2 * self._groups, self.config.head_dim)
        keys, values = heads[:, :, : self._groups], heads[:, :, self._groups :]
        norm = self._network.layer(number).self_attn.k_norm
        tables = self._network.tables(place.rotary, cache.capacity)
        keys = rotate(keys if norm is None else norm(keys), tables)
        return cache.write(number, place, keys.transpose(1, 2), values.transpose(1, 2))

    def _block(self, cache: SlotCache, rows: torch.Tensor, newest: torch.Tensor, width: int) -> torch.Tensor:
        """Normed states [B, width, h] of blocks at the ends of slots `rows`, whose anchors are `newest` [B]."""
        network, place = self._network, cache.place(rows, width)
        state = network.block(newest.to(network.embedding.device), width)
        ends = torch.tensor(place.starts, device=state.device) + width
        seen = (torch.arange(place.end, device=state.device) < ends[:, None])[:, None, None]
        whole = None if bool(seen.all()) else seen
        tables = network.tables(place.rotary, cache.capacity)
        keys_at = torch.arange(place.end, device=state.device)
        for number, products in enumerate(self._layers):
            layer, window, mask = network.layer(number), network.window(number), whole
            if window is not None:
                mask = seen & window.sees(place.positions.to(state.device)[:, None, :, None], keys_at)
            x, mixed = network.mix_in(number, "attention_conv", layer.input_layernorm(state))
            queries = products.queries(x).view(*x.shape[:2], self._heads, self.config.head_dim)
            norm = layer.self_attn.q_norm
            queries = rotate(queries if norm is None else norm(queries), tables)
            keys, values = self._write(cache, place, number, products.keys_values(x))
            attended = functional.scaled_dot_product_attention(
                queries.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=self._heads > self._groups
            )
            attended = products.out(attended.transpose(1, 2).flatten(2))
            state = state + network.mix_out(number, "attention_conv", attended, mixed)
            x, mixed = network.mix_in(number, "mlp_conv", layer.post_attention_layernorm(state))
            gate, up = products.gate_up(x).chunk(2, -1)
            state = state + network.mix_out(number, "mlp_conv", products.down(functional.silu(gate) * up), mixed)
        normed: torch.Tensor = network.norm(state)
        return normed


Proposal = DFlashProposal


def _products(network: DFlashNetwork, number: int, dtype: torch.dtype | None) -> _Products:
    attention, mlp = network.layer(number).self_attn, network.layer(number).mlp
    return _Products(
        queries=merge_linears([attention.q_proj], dtype),
        keys_values=merge_linears([attention.k_proj, attention.v_proj], dtype),
        out=merge_linears([attention.o_proj], dtype),
        gate_up=merge_linears([mlp.gate_proj, mlp.up_proj], dtype),
        down=merge_linears([mlp.down_proj], dtype),
    )


def _head(network: DFlashNetwork) -> nn.Linear:
    weight = network.head_weight
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
