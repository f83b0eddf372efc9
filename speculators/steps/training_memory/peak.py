"""The worst moment of a training: while the draft is made, in the loss, in the backward pass, or at the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from speculators.recipe.shapes.train import Muon
from speculators.steps.training_memory.setting import FLOAT, Setting

_MUON_COPIES = 3
"""Of its largest matrix while Muon orthogonalises it, in the type of products, beside the averaged gradient."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a training holds at one time or another, in elements where a name does not say bytes."""

    hidden: float
    """Trained matrices inside of the draft."""
    tables: float = 0.0
    """Trained look-up tables and output layers."""
    frozen: float = 0.0
    """The draft's own weights that are not trained."""
    shared: float = 0.0
    """The verifier's weights that are used as they are."""
    low: float = 0.0
    """Copies of weights in the type of products that are always there."""
    rounded: float = 0.0
    """Weights that are rounded for each batch, where anything is."""
    streams: int = 0
    """The verifier's streams in a batch, beside the last."""
    largest: float = 0.0
    """The largest hidden matrix."""
    head_gradient: float = 0.0
    """Weights whose gradient the loss makes before the backward pass."""
    summed: float = 0.0
    """Trained tables whose gradient comes in parts: two of them and their sum are there at once."""
    last_bytes: float = 0.0
    """Of what is kept, that of the layer whose backward pass comes last, when all gradients are there."""
    kept_bytes: float
    """From the forward pass for the backward pass, with the gradients that the loss leaves."""
    passing_bytes: float
    """The largest of what is there only for a moment."""


def most_bytes(setting: Setting, held: Held) -> int:
    """Bytes that tensors hold at the worst moment."""
    trained, own = held.hidden + held.tables, held.hidden + held.tables + held.frozen
    resident = FLOAT * (own + held.shared) + setting.product * held.low
    resident += setting.moments(held.hidden, held.tables)
    resident += 2 * setting.batch(held.streams)  # one is computed, the next one is read
    building = FLOAT * (own + 2 * setting.embedding)
    computing = resident + held.kept_bytes + held.passing_bytes + FLOAT * held.head_gradient
    computing += setting.is_rounded * setting.product * held.rounded
    stepping = 0.0
    if isinstance(setting.train.optimizer, Muon):
        stepping = held.largest * (FLOAT + _MUON_COPIES * setting.product)
    learnt = resident + FLOAT * trained + max(stepping, 2 * FLOAT * held.summed + held.last_bytes)
    return round(max(building, computing, learnt))
