"""The part of a recipe that decides what a step makes, as plain data to be hashed.

Left out are operational properties (device, batch sizes, paths, what is kept) and values that equal their default: so
neither another machine nor a property that a later version adds makes old work worthless. In return, a default must
never change without a new version of every step that reads it; a test holds a table of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from speculators.recipe.locate import parts
from speculators.recipe.schema import Schema, fields, fields_at, fill, properties, recipe_schema
from speculators.recipe.shapes.recipe import Recipe


def semantic(recipe: Recipe, reads: Sequence[str]) -> dict[str, Any]:
    """The declared paths as nested plain data, without operational properties and defaults.

    The same recipe gives the same data however it was written; numbers are of the types that the shapes declare.
    Raises ValueError for a path that no recipe has.
    """
    check_declared(reads)
    whole = _pruned(msgspec.to_builtins(recipe), recipe_schema())
    chosen: dict[str, Any] = {}
    for path in sorted(reads):
        _copy(whole, chosen, parts(path))
    return chosen


@cache
def operational_paths() -> frozenset[str]:
    """Every property that never enters a key, such as `verifier.engine.device` and `data.sources[].file`."""
    return frozenset(field.path for field in fields() if field.is_operational)


def check_declared(reads: Sequence[str]) -> None:
    """Raise ValueError when a step declares a path that no recipe has, or one inside a list."""
    for path in reads:
        if "[" in path or not fields_at(path):
            raise ValueError(f"a step declares that it reads `{path}`, which no recipe has")


def _pruned(value: Any, schema: Schema) -> Any:
    """Plain data without what is operational or as by default; a list keeps all its entries."""
    if isinstance(value, Mapping):
        kept = {}
        for name, below in sorted(properties(schema, value).items()):
            if name not in value or below.get("x-operational"):
                continue
            inner = _pruned(value[name], below)
            if "default" not in below or inner != _pruned(fill(below["default"], below), below):
                kept[name] = inner
        return kept
    if isinstance(value, list | tuple):
        return [_pruned(item, schema.get("items", {})) for item in value]
    return value


def _copy(source: Any, target: dict[str, Any], path: Sequence[str | int]) -> None:
    name, rest = str(path[0]), path[1:]
    if not isinstance(source, Mapping) or name not in source:
        return
    if rest and isinstance(source[name], Mapping):
        below = target.setdefault(name, {})
        _copy(source[name], below, rest)
        if not below:
            del target[name]
    else:
        target[name] = source[name]
