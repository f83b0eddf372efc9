"""The rule that planning and the loop hold static trees against."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from speculators.recipe.tree_paths import unled


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)))
def test_a_path_that_goes_on_from_none_is_found(paths: list[tuple[int, ...]]) -> None:
    found = unled(paths)
    for number, path in enumerate(paths):
        leads = any(other + path[-1:] == path for other in paths)
        assert (number in found) == (len(path) > 1 and not leads)
