"""The two kinds of attention that heads have, each in three parts around the one that the caller owns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.norms import norm_of
from speculators.layers.products import operand
from speculators.layers.rotary import Tables, rotate
from speculators.verifiers.latent import Latent, score_factor


class PlainAttention(nn.Module):
    """Grouped-query attention; with `gates_output` each head's gates follow its queries in `q_proj`."""

    def __init__(self, config: MtpConfig) -> None:
        super().__init__()
        self.config = config
        hidden, size = config.hidden_size, config.head_dim
        queries, keys = config.attention_heads * size, config.key_value_heads * size
        self.q_proj = nn.Linear(hidden, queries * (2 if config.gates_output else 1), bias=config.biases)
        self.k_proj = nn.Linear(hidden, keys, bias=config.biases)
        self.v_proj = nn.Linear(hidden, keys, bias=config.biases)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.q_norm = norm_of(config, size) if config.norms_heads else None
        self.k_norm = norm_of(config, size) if config.norms_heads else None

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as the projections multiply it, rounded once for all."""
        return operand(self.q_proj, x)

    def queries(self, x: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotated queries [..., heads, d] and, if the head has them, gates [..., heads, d], of `x` [..., h]."""
        heads, gates = self.q_proj(x).unflatten(-1, (self.config.attention_heads, -1)), None
        if self.config.gates_output:
            heads, gates = heads.chunk(2, -1)
        return self._turned(heads, self.q_norm, tables), gates

    def keys_values(self, x: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and plain values, each [..., kv, d]."""
        keys, values = (
            projected(x).unflatten(-1, (self.config.key_value_heads, -1)) for projected in (self.k_proj, self.v_proj)
        )
        return self._turned(keys, self.k_norm, tables), values

    def result(self, attended: torch.Tensor, gates: torch.Tensor | None) -> torch.Tensor:
        """What is added to the stream [..., h], from the heads' sums of values `attended` [..., heads, d]."""
        if gates is not None:
            attended = attended * gates.sigmoid()
        found: torch.Tensor = self.o_proj(attended.flatten(-2))
        return found

    def _turned(self, heads: torch.Tensor, norm: Any, tables: Tables) -> torch.Tensor:
        normed: torch.Tensor = heads if norm is None else norm(heads)
        turned = self.config.rotary_dim
        if turned == normed.shape[-1]:
            return rotate(normed, tables)
        return torch.cat([rotate(normed[..., :turned], tables), normed[..., turned:]], -1)


class LatentAttention(nn.Module):
    """DeepSeek's attention, its keys and values written out for every head, each with `Latent.width` channels.

    What is added to bring them there is zeros, and scores keep the scale of the keys' own channels.
    """

    def __init__(self, config: MtpConfig, latent: Latent) -> None:
        super().__init__()
        self.latent = latent
        hidden, eps, heads = config.hidden_size, config.rms_norm_eps, latent.heads
        queries = heads * latent.key_dim
        if latent.query_rank:
            self.q_a_proj = nn.Linear(hidden, latent.query_rank, bias=config.biases)
            self.q_a_layernorm = nn.RMSNorm(latent.query_rank, eps=eps)
            self.q_b_proj = nn.Linear(latent.query_rank, queries, bias=False)
        else:
            self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, latent.key_value_rank + latent.turned_dim, bias=config.biases)
        self.kv_a_layernorm = nn.RMSNorm(latent.key_value_rank, eps=eps)
        self.kv_b_proj = nn.Linear(latent.key_value_rank, heads * (latent.plain_dim + latent.value_dim), bias=False)
        self.o_proj = nn.Linear(heads * latent.value_dim, hidden, bias=config.biases)
        self._factor = score_factor(config.rope) * math.sqrt(latent.width / latent.key_dim)

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as the projections multiply it, rounded once for all."""
        return operand(self.kv_a_proj_with_mqa, x)

    def queries(self, x: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, None]:
        """Rotated queries [..., heads, width] of `x` [..., h]."""
        latent = self.latent
        heads = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if latent.query_rank else self.q_proj(x)
        plain, turned = heads.unflatten(-1, (latent.heads, -1)).split([latent.plain_dim, latent.turned_dim], -1)
        return self._widened(torch.cat([plain, _turned(turned, tables)], -1) * self._factor), None

    def keys_values(self, x: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and plain values, each [..., heads, width]."""
        latent = self.latent
        vector, shared = self.kv_a_proj_with_mqa(x).split([latent.key_value_rank, latent.turned_dim], -1)
        heads = self.kv_b_proj(self.kv_a_layernorm(vector)).unflatten(-1, (latent.heads, -1))
        plain, values = heads.split([latent.plain_dim, latent.value_dim], -1)
        turned = _turned(shared[..., None, :], tables).expand(*plain.shape[:-1], latent.turned_dim)
        return self._widened(torch.cat([plain, turned], -1)), self._widened(values)

    def result(self, attended: torch.Tensor, gates: torch.Tensor | None) -> torch.Tensor:
        """What is added to the stream [..., h], from the heads' sums of values `attended` [..., heads, width]."""
        found: torch.Tensor = self.o_proj(attended[..., : self.latent.value_dim].flatten(-2))
        return found

    def _widened(self, heads: torch.Tensor) -> torch.Tensor:
        lacking = self.latent.width - heads.shape[-1]
        return functional.pad(heads, (0, lacking)) if lacking else heads


def _turned(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Rotate pairs of neighbours; they end up half a vector apart, in queries and keys alike."""
    return rotate(torch.cat([x[..., ::2], x[..., 1::2]], -1), tables)
