"""Bytes that autograd keeps of one row of a decoder layer (`layers/decoder.py`), and what its passes take for a moment.

A norm keeps its normed input in float32; what multiplies its result keeps that in the type of products.
"""

from __future__ import annotations

from speculators.steps.training_memory.setting import (
    FLOAT,
    GPU_PART_SCORES,
    PART_SCORES,
    PLAIN_SCORES,
    LayerSizes,
    Setting,
)


def body(setting: Setting, layer: LayerSizes) -> float:
    """Queries, attention's result, the norm between, the MLP, and the stream after it."""
    low = setting.product
    return 2 * layer.queries * low + 3 * FLOAT * layer.hidden + mlp(setting, layer.hidden, layer.intermediate)


def mlp(setting: Setting, hidden: int, intermediate: int) -> float:
    """A gated MLP's input, once for each projection that rounds it, and its inner activations."""
    if setting.train.execution.recompute:
        return hidden * setting.product
    return ((2 if setting.is_rounded else 1) * hidden + 4 * intermediate) * setting.product


def tables(layer: LayerSizes) -> float:
    """Cosines and sines of a row's position."""
    return 2 * FLOAT * layer.head_dim


def keys_values(setting: Setting, layer: LayerSizes) -> float:
    """A row's keys and values."""
    return 2 * layer.keys * setting.product


def earlier_steps(setting: Setting, layer: LayerSizes, steps: int) -> float:
    """The keys and values of each step's earlier ones, put beside one another, of one chain."""
    return steps * (steps - 1) / 2 * keys_values(setting, layer)


def probabilities(setting: Setting, layer: LayerSizes) -> float:
    """All probabilities of one attention of the batch's chains over their documents, where they are kept."""
    kept = setting.load.scores if layer.heads * setting.load.longest <= PLAIN_SCORES else 0.0
    return layer.heads * kept * setting.product


def backward_of_mlp(setting: Setting, intermediate: int, count: float) -> float:
    """What the backward pass of a gated MLP over `count` rows adds: two gradients, or, recomputed, all of it."""
    return count * (6 if setting.train.execution.recompute else 2) * intermediate * setting.product


def attending(setting: Setting, layer: LayerSizes) -> float:
    """Scores and masked scores of the largest document, or of a part of it, or their gradients."""
    most = max(PLAIN_SCORES, GPU_PART_SCORES if setting.on_gpu else PART_SCORES)
    return 2 * min(most, layer.heads * setting.load.longest) * setting.product
