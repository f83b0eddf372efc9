"""What YAML text is read as: the core of YAML 1.2, with the place of every key and value."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from speculators.errors import RecipeError
from speculators.recipe.nodes import Text, dotted, plain, walk
from speculators.recipe.source import MOST_BYTES, decode, read


def data(text: str) -> Any:
    return plain(read(Text("some.yaml", text, Path())))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("+3", 3),
        ("012", 12),
        ("0o17", 15),
        ("0xFF", 255),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("Null", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("1.2.3", "1.2.3"),
        ("0b1", "0b1"),
        ("1e", "1e"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, value: object) -> None:
    found = data(f"key: {written}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_value_keeps_its_place() -> None:
    text = "a: 1\nb:\n  c: [x,\n      yy]\n  d: {e: &n 5}\nf: *n\n"
    root = read(Text("some.yaml", text, Path()))
    places = {dotted(path): (node.key_line, node.key_column, node.line, node.column) for path, node in walk(root)}
    assert places == {
        "": (0, 0, 1, 1),
        "a": (1, 1, 1, 4),
        "b": (2, 1, 3, 3),
        "b.c": (3, 3, 3, 6),
        "b.c[0]": (0, 0, 3, 7),
        "b.c[1]": (0, 0, 4, 7),
        "b.d": (5, 3, 5, 6),
        "b.d.e": (5, 7, 5, 10),
        "f": (6, 1, 6, 4),
    }


def test_an_alias_stands_for_what_its_anchor_names() -> None:
    assert data("a: &x {b: [1, 2]}\nc: *x\nd: [*x]\n") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": [{"b": [1, 2]}]}


def test_aliases_that_multiply_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    before = time.perf_counter()
    with pytest.raises(RecipeError, match=r"more than 20,000 values"):
        data("\n".join(lines))
    assert time.perf_counter() - before < 5


def test_aliases_that_nest_are_refused() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 70))]
    with pytest.raises(RecipeError, match="nested deeper than 64 levels"):
        data("\n".join(lines))


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_without_exhausting_the_stack(opening: str) -> None:
    with pytest.raises(RecipeError, match="nested deeper than 64 levels"):
        data("a:\n " + opening * 5000)


def test_a_file_that_is_too_big_is_not_parsed() -> None:
    with pytest.raises(RecipeError, match="at most 1,048,576 are read"):
        decode("some.yaml", b"#" * (MOST_BYTES + 1))


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm() -> None:
    assert data(decode("some.yaml", b"\xef\xbb\xbfa: 1\r\nb:\r\n  - x\r\n")) == {"a": 1, "b": ["x"]}


def test_control_characters_never_reach_the_terminal() -> None:
    with pytest.raises(RecipeError) as caught:
        data("a: b\x1b[31m\n")
    assert "\x1b" not in str(caught.value)


def test_a_yaml_version_line_changes_nothing() -> None:
    assert data("%YAML 1.1\n---\na: no\n") == {"a": "no"}
