"""The decoder most models share, without transformers' overhead around each layer: a fifth of the time of one token.

The family: RMS norms before attention and a gated MLP, rotary positions, grouped key heads, biases and query/key norms
or not (Llama, Mistral, Qwen 2 and 3, and whatever copies them). Nothing here knows a model by name: a decoder that has
exactly these parts is taken apart, and is used only if it then gives the numbers of its own code on a probe
(`transformers.py`). What differs (scaled residuals, other norms, soft caps) fails the probe and keeps its own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from speculators.engines.attention import Pass, attend
from speculators.layers.packed_linear import merge_linears

Function = Callable[[torch.Tensor], torch.Tensor]

LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass
class _Layer:
    """One layer's functions; heads are query, key, value heads side by side in `qkv`'s output."""

    attention_norm: Function
    qkv: Function
    query_norm: Function | None
    key_norm: Function | None
    out: Function
    mlp_norm: Function
    gate_up: Function
    activation: Function
    down: Function
    scaling: float
    head_dim: int
    kv_heads: int


class LeanDecoder:
    """Embedding, layers and positions of a decoder, as plain functions; the final norm and the head stay outside."""

    def __init__(self, decoder: Any) -> None:
        """Take apart a decoder for which `fits` is true. Its modules stay in use until `merge`."""
        self._decoder = decoder
        self._layers = [_taken_apart(layer) for layer in decoder.layers]

    @staticmethod
    def fits(decoder: Any) -> bool:
        """Whether the decoder has exactly the parts of the family."""
        needed = all(hasattr(decoder, name) for name in ("embed_tokens", "layers", "rotary_emb", "norm"))
        if not needed or getattr(decoder.config, "sliding_window", None) is not None:
            return False
        return all(_fits(layer) for layer in decoder.layers)

    def merge(self, dtype: torch.dtype | None) -> None:
        """Join q, k and v, and gate and up, into one product each, packed in `dtype` where the processor can.

        The decoder's own modules are emptied layer by layer, so that memory does not double; its own code can no
        longer run.
        """
        for layer, source in zip(self._layers, self._decoder.layers, strict=True):
            attention, mlp = source.self_attn, source.mlp
            layer.qkv = merge_linears((attention.q_proj, attention.k_proj, attention.v_proj), dtype)
            layer.gate_up = merge_linears((mlp.gate_proj, mlp.up_proj), dtype)
            layer.out = merge_linears((attention.o_proj,), dtype)
            layer.down = merge_linears((mlp.down_proj,), dtype)
            for owner, names in ((attention, ATTENTION), (mlp, MLP - {"act_fn"})):
                for name in names:
                    delattr(owner, name)

    def forward(self, input_ids: torch.Tensor, current: Pass, wanted: Iterable[int]) -> dict[int, torch.Tensor]:
        """The streams [B, q, h] entering the layers in `wanted` and, under the number of layers, the last one."""
        x = self._decoder.embed_tokens(input_ids)
        batch, width, _ = x.shape
        cos, sin = self._decoder.rotary_emb(x, current.rotary)
        half = cos.shape[-1] // 2
        cos, sin = cos[:, :, None], torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[:, :, None]
        wanted = set(wanted)
        streams: dict[int, torch.Tensor] = {}
        for number, layer in enumerate(self._layers):
            if number in wanted:
                streams[number] = x
            heads = layer.qkv(layer.attention_norm(x)).view(batch, width, -1, layer.head_dim)
            x = x + layer.out(_attention(heads, number, layer, current, cos, sin).reshape(batch, width, -1))
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(layer.activation(gate) * up)
        streams[len(self._layers)] = x
        return streams


def _attention(
    heads: torch.Tensor, number: int, layer: _Layer, current: Pass, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """From all heads [B, q, heads + 2 * kv, d] to the attention's output [B, q, heads, d]; `sin` has its sign."""
    kv = layer.kv_heads
    turned, value = heads[:, :, :-kv], heads[:, :, -kv:]
    if layer.query_norm is not None and layer.key_norm is not None:
        turned = torch.cat((layer.query_norm(turned[:, :, :-kv]), layer.key_norm(turned[:, :, -kv:])), dim=2)
    turned = torch.addcmul(turned * cos, turned.roll(layer.head_dim // 2, dims=-1), sin)
    query, key = turned[:, :, :-kv].transpose(1, 2), turned[:, :, -kv:].transpose(1, 2)
    keys, values = current.put(number, key, value.transpose(1, 2))
    return attend(query, keys, values, current, layer.scaling).transpose(1, 2)


def _fits(layer: nn.Module) -> bool:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or mlp is None or _parts(layer) != LAYER or _parts(mlp) | {"act_fn"} != MLP:
        return False
    if _parts(attention) not in (ATTENTION, ATTENTION | {"q_norm", "k_norm"}):
        return False
    linears = [getattr(attention, name) for name in ATTENTION] + [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if any(type(linear) is not nn.Linear for linear in linears):
        return False
    return attention.k_proj.out_features == attention.v_proj.out_features and hasattr(attention, "scaling")


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _taken_apart(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        attention_norm=_norm(layer.input_layernorm),
        qkv=_side_by_side(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        out=attention.o_proj,
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_side_by_side(mlp.gate_proj, mlp.up_proj),
        activation=mlp.act_fn,
        down=mlp.down_proj,
        scaling=float(attention.scaling),
        head_dim=int(attention.head_dim),
        kv_heads=attention.k_proj.out_features // int(attention.head_dim),
    )


def _side_by_side(*linears: Function) -> Function:
    return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)


def _norm(module: Any) -> Function:
    """Torch's own RMS norm where the module is a plain one, half the time of transformers' seven operations."""
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        weight = module.weight.detach()
        return partial(functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=module.variance_epsilon)
    return module  # type: ignore[no-any-return]
