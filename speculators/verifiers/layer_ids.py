"""Which of a verifier's streams a draft reads: id L enters layer L; the number of layers is before the final norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def auto_layers(layers: int) -> tuple[int, int, int]:
    """The three streams EAGLE-3 reads by default: 2, n // 2 and n - 3 of n layers.

    Fewer than 6 layers have no such three; the ids are then put in order and kept inside, and some coincide.
    """
    low, middle, high = sorted(min(max(layer, 0), layers) for layer in (2, layers // 2, layers - 3))
    return low, middle, high


def spread_layers(count: int, layers: int) -> tuple[int, ...]:
    """`count` streams spread evenly from 2 to n - 2 of n layers, as DFlash's authors choose them; for one, the middle.

    Their ids count outputs and are one less. In a verifier with few layers some coincide and are left out.
    """
    if count == 1:
        return (layers // 2 + 1,)
    low, high = min(2, layers), max(layers - 2, min(2, layers))
    return tuple(sorted({round(low + place * (high - low) / (count - 1)) for place in range(count)}))


def resolve_layers(wanted: Sequence[int] | Literal["auto"], layers: int) -> tuple[int, ...]:
    """The layer ids that a recipe's `aux_layers` means for a verifier of `layers` layers."""
    return auto_layers(layers) if wanted == "auto" else tuple(wanted)
