"""The shipped JSON Schemas, walked: which properties there are, which apply to a value, and what their defaults are.

Unions are `if`/`then` by `type`, so for any value exactly one branch applies and nothing has to be guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from speculators.recipe.outside import outside_algorithms
from speculators.shipped import shipped_folder

Schema = Mapping[str, Any]

COMPOSED = ("extends", "preset")
"""Properties that say where others come from; a composed recipe has them no more."""


@dataclass(frozen=True)
class Field:
    """A property of the recipe: `train.optimizer.betas`, `data.sources[].file`.

    `branch` is the `type` it belongs to when its section is a union (`adamw`), else empty.
    """

    path: str
    schema: Schema
    branch: str = ""
    is_operational: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2].removesuffix("[]")

    @property
    def section(self) -> str:
        """The path of the mapping it stands in; empty for the root."""
        return self.path.rpartition(".")[0]


@cache
def recipe_schema() -> Schema:
    """The schema of a whole recipe, every `$ref` replaced by what it refers to; other packages' algorithms included."""
    schema = _inlined(shipped_folder("schemas") / "recipe.schema.json")
    algorithm = schema["properties"]["algorithm"]
    for name, outside in outside_algorithms().items():
        algorithm["properties"]["type"]["enum"].append(name)
        condition = {"properties": {"type": {"const": name}}, "required": ["type"]}
        algorithm["allOf"].append({"if": condition, "then": _inlined(outside.schema)})
    return schema


@cache
def fields() -> tuple[Field, ...]:
    """Every property of every branch, parents first, in the schemas' order."""
    return tuple(_fields(recipe_schema(), "", "", is_operational=False))


@cache
def fields_at(path: str) -> tuple[Field, ...]:
    """The properties at a path (one in each branch that has it); list positions may be written or left as `[]`."""
    wanted = generic(path)
    return tuple(field for field in fields() if field.path == wanted)


def generic(path: str) -> str:
    """A path with its list positions left out: `data.sources[0].file` is `data.sources[].file`."""
    return "".join(f"{piece.rpartition('[')[0]}[]" for piece in path.split("]")[:-1]) + path.rpartition("]")[2]


def allows_null(path: str) -> bool:
    """Whether null is a value of this property."""
    return any(admits(field.schema, None) for field in fields_at(path))


def admits(schema: Schema, value: str | None) -> bool:
    """Whether null, or a word, is among the values a property may have."""
    if "enum" in schema:
        return value in schema["enum"]
    types = schema.get("type", ())
    types = (types,) if isinstance(types, str) else types
    return "null" in types if value is None else "string" in types


def applicable(schema: Schema, value: Any) -> Iterator[Schema]:
    """The schema itself and the branches of it that apply to a value."""
    yield schema
    for part in schema.get("allOf", ()):
        yield from applicable(part, value)
    if "if" in schema:
        branch = schema.get("then" if holds(schema["if"], value) else "else")
        if branch is not None:
            yield from applicable(branch, value)


def holds(condition: Schema, value: Any) -> bool:
    """Whether an `if` holds; our schemas ask there only for keys that exist and values that are constant."""
    if not isinstance(value, Mapping) or any(key not in value for key in condition.get("required", ())):
        return not isinstance(value, Mapping)
    wanted = condition.get("properties", {})
    return all(value[key] == part["const"] for key, part in wanted.items() if key in value)


def properties(schema: Schema, value: Any) -> dict[str, Schema]:
    """Name -> schema of every property that a mapping may have, by the branches that apply to it."""
    found: dict[str, Schema] = {}
    for part in applicable(schema, value):
        for name, below in part.get("properties", {}).items():
            # A branch may say more about a property (its constant type), but the default stays where it was written.
            found[name] = {**below, **found[name]} if name in found else below
    return found


def fill(value: Any, schema: Schema | None = None) -> Any:
    """A copy of plain data with every default filled in, keys in the schema's order, whole floats as integers where
    an integer is meant. What the schema does not know is left as it is.
    """
    schema = recipe_schema() if schema is None else schema
    if isinstance(value, Mapping):
        filled = dict(value)
        # A union's `type` may itself be filled in, and only then is its branch known.
        for _ in range(2):
            known = properties(schema, filled)
            for name, below in known.items():
                if name not in filled and "default" in below and name not in COMPOSED:
                    filled[name] = deepcopy(below["default"])
        ordered = [name for name in known if name in filled] + [name for name in filled if name not in known]
        return {name: fill(filled[name], known.get(name, {})) for name in ordered}
    if isinstance(value, list):
        return [fill(item, schema.get("items", {})) for item in value]
    if isinstance(value, float) and value.is_integer() and _wants_integer(schema):
        return int(value)
    return value


def _wants_integer(schema: Schema) -> bool:
    types = schema.get("type", ())
    return "integer" in ((types,) if isinstance(types, str) else types)


def _fields(schema: Schema, path: str, branch: str, *, is_operational: bool) -> Iterator[Field]:
    for name, below in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        flag = is_operational or bool(below.get("x-operational"))
        yield Field(here, below, branch, flag)
        yield from _fields(below, here, "", is_operational=flag)
        if "items" in below:
            yield from _fields(below["items"], f"{here}[]", "", is_operational=flag)
    for part in schema.get("allOf", ()):
        kind = part["if"]["properties"]["type"]["const"]
        for field in _fields(part["then"], path, str(kind), is_operational=is_operational):
            if field.name != "type" or field.section != path:
                yield field


def _inlined(file: Path) -> dict[str, Any]:
    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:  # what stands beside it, such as a default, is added
                beside = {key: below for key, below in part.items() if key != "$ref"}
                path, _, inside = part["$ref"].partition("#/")
                found = _inlined(file.parent / path)
                for name in inside.split("/") if inside else ():
                    found = found[name]
                return {**found, **beside}
            return {key: resolve(below) for key, below in part.items()}
        return [resolve(below) for below in part] if isinstance(part, list) else part

    content = resolve(json.loads(file.read_text(encoding="utf-8")))
    content.pop("$schema", None)
    return dict(content)
