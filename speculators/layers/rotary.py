"""Rotary positions exactly as transformers' Llama computes them, from the `rope_parameters` table of a config.

Angles are float32 whatever the activations are. Types: default, linear, llama3, yarn; those whose frequencies change
with the length of the sequence (dynamic, longrope) are refused, because a draft's cached keys could not follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from speculators.errors import UsageError

Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [..., head_dim] of some positions, ready for `rotate`."""

_FIRST_TABLE = 512


class Rotary(nn.Module):
    """Cosine and sine tables, computed once for all positions met so far. Holds no parameter and saves nothing."""

    def __init__(self, head_dim: int, parameters: Mapping[str, Any], max_position_embeddings: int) -> None:
        super().__init__()
        self._frequencies, self._scale = frequencies(head_dim, parameters, max_position_embeddings)
        self._cos = self._sin = torch.empty(0, head_dim)
        self._grow(_FIRST_TABLE, torch.device("cpu"))

    def forward(self, positions: torch.Tensor, last: int | None = None) -> Tables:
        """The tables at `positions` int64 [...], each [..., head_dim] float32.

        `last` is an upper bound of the positions, for callers that know it: nothing has then to be looked at.
        """
        highest = int(positions.max()) if last is None and positions.numel() else last or 0
        if highest >= len(self._cos) or self._cos.device != positions.device:
            self._grow(max(2 * len(self._cos), highest + 1), positions.device)
        return self._cos[positions], self._sin[positions]

    def _grow(self, size: int, device: torch.device) -> None:
        angles = torch.outer(torch.arange(size, dtype=torch.float32), self._frequencies)
        angles = torch.cat([angles, angles], -1)
        self._cos = (angles.cos() * self._scale).to(device)
        self._sin = (angles.sin() * self._scale).to(device)


def rotate(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Turn x [..., heads, head_dim] by `tables` [..., head_dim]; halves are paired, as in Llama.

    The result has x's type; the turning itself is never done in less than float32.
    """
    cos, sin = (table[..., None, :] for table in tables)
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def frequencies(
    head_dim: int, parameters: Mapping[str, Any], max_position_embeddings: int
) -> tuple[torch.Tensor, float]:
    """Angle per position of each pair of channels, float32 [head_dim/2], and the factor on cosines and sines.

    Raises UsageError for a rotary type that this project does not compute.
    """
    base = float(parameters.get("rope_theta", 10000.0))
    kind = str(parameters.get("rope_type", "default"))
    plain = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / float(parameters["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, parameters), 1.0
    if kind == "yarn":
        return _yarn(plain, head_dim, base, parameters, max_position_embeddings)
    raise UsageError(f"the draft cannot use rotary positions of type {kind!r}; allowed: default, linear, llama3, yarn")


def _llama3(plain: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    factor, original = float(parameters["factor"]), float(parameters["original_max_position_embeddings"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    wavelengths = 2 * math.pi / plain
    kept = (original / wavelengths - low) / (high - low)
    blended = (1 - kept) * plain / factor + kept * plain
    stretched = torch.where(wavelengths > original / low, plain / factor, plain)
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, blended, stretched)


def _yarn(
    plain: torch.Tensor, head_dim: int, base: float, parameters: Mapping[str, Any], max_position_embeddings: int
) -> tuple[torch.Tensor, float]:
    """Fast channels are extrapolated, slow ones interpolated, a ramp between (YaRN, arXiv 2309.00071)."""
    original = float(parameters.get("original_max_position_embeddings") or max_position_embeddings)
    factor = float(parameters.get("factor") or max_position_embeddings / original)

    def channel(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    def temperature(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    low = channel(float(parameters.get("beta_fast") or 32.0))
    high = channel(float(parameters.get("beta_slow") or 1.0))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2).float() - low) / ((high - low) or 0.001)).clamp(0, 1)
    scale = parameters.get("attention_factor")
    if scale is None:
        weight, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
        scale = (
            temperature(factor, weight) / temperature(factor, all_dim) if weight and all_dim else temperature(factor)
        )
    return plain / factor * ramp + plain * (1 - ramp), float(scale)
