"""Recipes as YAML text: plain data written so that it reads back equal, and a commented recipe to start from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speculators.errors import RecipeError
from speculators.recipe.nodes import Text
from speculators.recipe.schema import Schema, fill, properties, recipe_schema
from speculators.recipe.source import read_value
from speculators.shipped import shipped_folder

_SENTENCE = re.compile(r".*?[.](?=\s|$)")
_WORD = re.compile(r"[A-Za-z0-9_./@=+-][A-Za-z0-9_./@=+ -]*(?<! )")
"""Text that might go without quotes; what reads as a number, a boolean or null still needs them."""


def to_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that loads back equal: mappings in blocks, everything else on one line."""
    return "".join(f"{line}\n" for line in _block(data, ""))


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inline(key)}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, str) and _reads_back(value):
        return value
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable(), allow_nan=False)


def modeline() -> str:
    """The first line that lets editors complete and check a recipe, for the schemas as installed here."""
    return f"# yaml-language-server: $schema={(shipped_folder('schemas') / 'recipe.schema.json').as_uri()}"


def starter(name: str, model: str) -> str:
    """A recipe with what must be said, and everything else as a comment that states its default."""
    said: dict[str, Any] = {
        "recipe": 1,
        "name": name,
        "verifier": {"model": model},
        "algorithm": {"type": "eagle3"},
        "data": {"sources": [{"file": "data/prompts.jsonl"}]},
    }
    top = [modeline(), "# What is commented out has the value shown; `speculators schema` explains everything.", ""]
    filled = fill(said)
    filled["data"]["sources"] = said["data"]["sources"]
    return "\n".join([*top, *_commented(filled, recipe_schema(), said, "")]) + "\n"


def _block(data: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{inline(key)}:"
            yield from _block(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield f"{indent}{inline(key)}:"
            yield from (f"{indent}  - {inline(item)}" for item in value)
        else:
            yield f"{indent}{inline(key)}: {inline(value)}"


def _commented(data: Mapping[str, Any], schema: Schema, said: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, below in properties(schema, data).items():
        if name not in data:
            continue
        value, hidden = data[name], "" if name in said else "# "
        about = f"  # {_first_sentence(below)}"
        if isinstance(value, Mapping):
            if not indent:
                yield ""
            yield f"{hidden}{indent}{name}:{about}"
            yield from _commented(value, below, said.get(name, {}), indent + "  ")
        else:
            yield f"{hidden}{indent}{name}: {inline(value)}{about}"


def _first_sentence(schema: Schema) -> str:
    description = str(schema.get("description", ""))
    match = _SENTENCE.match(description)
    return match.group() if match else description


def _reads_back(value: str) -> bool:
    """Whether our reader takes a bare word as this very text."""
    if not _WORD.fullmatch(value):
        return False
    try:
        node = read_value(Text("", f"[{value}]", Path()))
    except RecipeError:
        return False
    items = node.value if node is not None else None
    return isinstance(items, list) and len(items) == 1 and items[0].value == value
