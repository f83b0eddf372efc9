"""Recipes written as text: what is written reads back equal, and the starter explains itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.recipe.load import load_recipe, recipe_of
from speculators.recipe.nodes import Text, plain
from speculators.recipe.source import read
from speculators.recipe.write import starter, to_yaml

WORDS = "no|true|null|~|| x|x |1e-4|0x1f|1:30|a: b|a #b|#|- a|"
WORDS += "*a|&a|!a|@|[a]|{|it's|\"|\\|a\nb|\t|\x07|café|½‖p|%|<<|=|a,b|…"
words = st.sampled_from(WORDS.split("|"))
numbers = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(words.filter(lambda word: word != "<<"), below, max_size=3)
    ),
    max_leaves=6,
)


def parsed(text: str) -> Any:
    return plain(read(Text("written.yaml", text, Path())))


@given(st.dictionaries(words, values, min_size=1, max_size=3))
def test_what_is_written_reads_back_equal(data: dict[str, Any]) -> None:
    assert parsed(to_yaml(data)) == data


def test_a_resolved_recipe_loads_to_the_same_recipe(tmp_path: Path) -> None:
    loaded = load_recipe("quickstart")
    (tmp_path / "resolved.yaml").write_text(to_yaml(loaded.data), encoding="utf-8")
    assert load_recipe(tmp_path / "resolved.yaml").recipe == loaded.recipe


def test_the_starter_is_valid_and_its_comments_are_the_defaults(tmp_path: Path) -> None:
    text = starter("mine", "Qwen/Qwen3-8B")
    lines = [line.removeprefix("# ") if index > 2 else line for index, line in enumerate(text.splitlines())]
    for name, content in (("mine.yaml", text), ("all.yaml", "\n".join(lines))):
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml").recipe == load_recipe(tmp_path / "all.yaml").recipe
    assert set(parsed("\n".join(lines))) == set(load_recipe(tmp_path / "mine.yaml").data)
    assert text.startswith("# yaml-language-server: $schema=file:///")


def test_numbers_without_an_end_are_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_yaml({"a": float("nan")})


def test_plain_data_is_enough_to_make_the_recipe_again() -> None:
    loaded = load_recipe("tiny")
    assert recipe_of(parsed(to_yaml(loaded.data))) == loaded.recipe
