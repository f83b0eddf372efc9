"""One decoder layer of a draft, in two halves around an attention that the caller owns.

Training attends along chains, serving attends over a cache; both use the same projections, norms and MLP. The first
half ends with queries, keys and values, the second begins with what attention made of them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from speculators.layers.products import operand
from speculators.layers.rotary import Tables, rotate


class Attention(nn.Module):
    """The four projections of grouped-query attention, from `input_size` (twice the hidden size in a first layer).

    With `eps` every head's queries and keys are normed before they are rotated, as in Qwen3. `biases` are those of
    query, key and value projections (Qwen2), `output_bias` that of the last projection.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        heads: int,
        key_value_heads: int,
        head_dim: int,
        eps: float | None = None,
        *,
        biases: bool = False,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(input_size, heads * head_dim, bias=biases)
        self.k_proj = nn.Linear(input_size, key_value_heads * head_dim, bias=biases)
        self.v_proj = nn.Linear(input_size, key_value_heads * head_dim, bias=biases)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=output_bias)
        self.q_norm = nn.RMSNorm(head_dim, eps=eps) if eps is not None else None
        self.k_norm = nn.RMSNorm(head_dim, eps=eps) if eps is not None else None


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`, as in Llama."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, biases: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=biases)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=biases)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer; `reads_embeddings` makes it EAGLE-3's first layer.

    That one takes `[input_layernorm(embedding); hidden_norm(state)]` and adds its output to `hidden_norm(state)`
    (`norm_before_residual`) or to the state itself. The others are ordinary layers of the state alone. `norms_heads`
    makes them Qwen3's: queries and keys are normed head by head. Without `norms_input` (EAGLE-1) the projections read
    the state as it is. The three kinds of biases are those of `Attention` and of the MLP.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        heads: int,
        key_value_heads: int,
        head_dim: int,
        eps: float,
        reads_embeddings: bool = False,
        norm_before_residual: bool = False,
        norms_heads: bool = False,
        norms_input: bool = True,
        attention_biases: bool = False,
        output_bias: bool = False,
        mlp_biases: bool = False,
    ) -> None:
        super().__init__()
        self.norm_before_residual = norm_before_residual
        self.hidden_norm = nn.RMSNorm(hidden_size, eps=eps) if reads_embeddings else None
        self.input_layernorm: nn.Module = nn.RMSNorm(hidden_size, eps=eps) if norms_input else nn.Identity()
        self.post_attention_layernorm = nn.RMSNorm(hidden_size, eps=eps)
        input_size = 2 * hidden_size if reads_embeddings else hidden_size
        head_eps = eps if norms_heads else None
        self.self_attn = Attention(
            input_size,
            hidden_size,
            heads,
            key_value_heads,
            head_dim,
            head_eps,
            biases=attention_biases,
            output_bias=output_bias,
        )
        self.mlp = GatedMLP(hidden_size, intermediate_size, biases=mlp_biases)

    def enter(self, embeddings: torch.Tensor | None, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the projections read, [..., h or 2h], and the residual, [..., h].

        `embeddings` [..., h] are read by a first layer only, `state` [..., h] is the stream so far.
        """
        if self.hidden_norm is None or embeddings is None:
            return operand(self.self_attn.q_proj, self.input_layernorm(state)), state
        normed = self.hidden_norm(state)
        residual = normed if self.norm_before_residual else state
        # All three projections read it: it is rounded once, if it is.
        parts = [operand(self.self_attn.q_proj, part) for part in (self.input_layernorm(embeddings), normed)]
        return torch.cat(parts, -1), residual

    def queries(self, x: torch.Tensor, tables: Tables) -> torch.Tensor:
        """Rotated queries [..., heads, d] of `x` from `enter`."""
        heads, norm = self._heads(self.self_attn.q_proj(x)), self.self_attn.q_norm
        return rotate(heads if norm is None else norm(heads), tables)

    def keys_values(self, x: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and plain values, each [..., kv, d]."""
        heads, norm = self._heads(self.self_attn.k_proj(x)), self.self_attn.k_norm
        keys = rotate(heads if norm is None else norm(heads), tables)
        return keys, self._heads(self.self_attn.v_proj(x))

    def leave(self, attended: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The stream after this layer [..., h], from attention's result [..., heads, d] and `enter`'s residual."""
        hidden = residual + self.self_attn.o_proj(attended.flatten(-2))
        result: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.view(*projected.shape[:-1], -1, self.self_attn.head_dim)
