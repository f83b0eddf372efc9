"""The layers that a draft reads unless its recipe names others."""

from __future__ import annotations

import pytest

from speculators.verifiers.layer_ids import auto_layers, resolve_layers, spread_layers


@pytest.mark.parametrize(
    ("layers", "wanted"), [(30, (2, 15, 27)), (32, (2, 16, 29)), (36, (2, 18, 33)), (6, (2, 3, 3)), (3, (0, 1, 2))]
)
def test_the_layers_read_by_default(layers: int, wanted: tuple[int, ...]) -> None:
    assert auto_layers(layers) == wanted == resolve_layers("auto", layers)
    assert resolve_layers([1, 2], layers) == (1, 2)


@pytest.mark.parametrize(
    ("count", "layers", "wanted"),
    [(5, 36, (2, 10, 18, 26, 34)), (5, 28, (2, 8, 14, 20, 26)), (1, 36, (19,)), (2, 8, (2, 6)), (5, 4, (2,))],
)
def test_layers_are_spread_as_the_authors_of_block_drafts_do(count: int, layers: int, wanted: tuple[int, ...]) -> None:
    """Their ids count outputs: [1, 9, 17, 25, 33] of 36 layers are the streams entering layers 2 to 34."""
    assert spread_layers(count, layers) == wanted
