"""The schemas' own rules, and that the typed shapes have exactly the same fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from speculators.recipe.compose import find_recipe
from speculators.recipe.nodes import Text, plain
from speculators.recipe.schema import COMPOSED, fields, fields_at, fill, generic, properties, recipe_schema
from speculators.recipe.shapes.recipe import Recipe
from speculators.recipe.source import decode, read
from speculators.shipped import shipped_folder

FILES = sorted(shipped_folder("schemas").rglob("*.json"))
KEYWORDS = {
    *(
        "$schema",
        "$ref",
        "title",
        "description",
        "default",
        "examples",
        "type",
        "properties",
        "required",
        "enum",
        "const",
    ),
    *("items", "minItems", "maxItems", "uniqueItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "maxLength", "pattern", "additionalProperties", "allOf", "if", "then", "else"),
    *("x-operational", "x-unit", "x-allowed", "x-path"),
}
"""What draft-07 has too, so that every editor understands it, and our own."""


def parts(schema: Any, keyword: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with the keyword it stands under."""
    yield keyword, schema
    for name, below in schema.items():
        if name == "properties":
            for part in below.values():
                yield from parts(part, "property")
        elif name in ("items", "if", "then", "else"):
            yield from parts(below, name)
        elif name == "allOf":
            for part in below:
                yield from parts(part, name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_schema_file_is_a_plain_one_of_draft_2020_12(file: Any) -> None:
    schema = json.loads(file.read_text(encoding="utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    for _, part in parts(schema):
        assert set(part) <= KEYWORDS
        assert not part.get("$ref", "").startswith(("/", "http"))


def test_mappings_are_closed_and_unions_are_by_type() -> None:
    for keyword, part in parts(recipe_schema()):
        if keyword in ("if", "else", "allOf"):
            continue
        types = part.get("type", [])
        if "object" in ([types] if isinstance(types, str) else types):
            if "allOf" in part:
                assert list(part["properties"]) == ["type"]
                branches = [branch["if"]["properties"]["type"]["const"] for branch in part["allOf"]]
                assert branches == part["properties"]["type"]["enum"]
                assert all(branch["then"]["additionalProperties"] is False for branch in part["allOf"])
            else:
                assert part["additionalProperties"] is False


def test_conditions_ask_only_for_keys_and_constants() -> None:
    for keyword, part in parts(recipe_schema()):
        if keyword == "if":
            assert set(part) <= {"properties", "required"}
            assert all(set(below) == {"const"} for below in part.get("properties", {}).values())


@pytest.mark.parametrize("field", fields(), ids=lambda field: f"{field.path}{field.branch and '-'}{field.branch}")
def test_every_property_is_described_with_an_example_and_a_default(field: Any) -> None:
    required = {"recipe", "name", "verifier", "algorithm", "algorithm.type", "data", "data.sources"}
    required |= {"eval.benchmark.variants[].name", "eval.benchmark.profile.rates", "eval.acceptance.tree.paths"}
    assert field.schema["description"].endswith(".")
    assert field.schema["examples"]
    assert ("default" in field.schema) == (field.path not in required)
    check = Draft202012Validator({key: value for key, value in field.schema.items() if key != "else"})
    for example in field.schema["examples"]:
        assert check.is_valid(example), example
    if "default" in field.schema and field.name not in COMPOSED:
        assert check.is_valid(fill(field.schema["default"], field.schema))


def test_a_child_recipe_is_not_asked_for_what_its_base_has() -> None:
    check = Draft202012Validator(dict(recipe_schema()))
    child = {"recipe": 1, "name": "child", "extends": "base.yaml", "algorithm": {"draft_vocab_size": 5}}
    assert check.is_valid(child)
    assert not check.is_valid({"recipe": 1, "name": "child", "algorithm": {"type": "eagle3"}})


SHIPPED = [file.relative_to(shipped_folder("recipes")).as_posix() for file in shipped_folder("recipes").rglob("*.yaml")]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_editors_find_nothing_wrong_with_shipped_recipes(name: str) -> None:
    """Editors see one file, before anything is composed or filled."""
    file = find_recipe(name)
    data = plain(read(Text(name, decode(name, file.read_bytes()), file.parent)))
    assert not list(Draft202012Validator(dict(recipe_schema())).iter_errors(data))
    first = file.read_text(encoding="utf-8").splitlines()[0]
    schema = file.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.resolve() == (shipped_folder("schemas") / "recipe.schema.json").resolve()


def shape_fields() -> dict[tuple[str, str], set[str]]:
    """(path, branch) -> the JSON types and words that the msgspec shapes allow there."""
    document = msgspec.json.schema(Recipe)
    found: dict[tuple[str, str], set[str]] = {}

    def resolve(part: dict[str, Any]) -> dict[str, Any]:
        return document["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part

    def kinds(part: dict[str, Any]) -> set[str]:
        part = resolve(part)
        if "anyOf" in part:
            return set().union(*(kinds(option) for option in part["anyOf"]))
        if "enum" in part:
            return {f"={json.dumps(value)}" for value in part["enum"]}
        return {part["type"]} if "type" in part else set()

    def walk(part: dict[str, Any], path: str, branch: str) -> None:
        part = resolve(part)
        for option in part.get("anyOf", ()):
            words = resolve(option).get("properties", {}).get("type", {}).get("enum", [""])
            walk(option, path, words[0] if len(words) == 1 else "")
        if "items" in part and isinstance(part["items"], dict):
            walk(part["items"], f"{path}[]", "")
        tag = part.get("properties", {}).get("type", {}).get("enum", [])
        if tag and len(tag) == 1:
            branch = tag[0]
        for name, below in part.get("properties", {}).items():
            here = f"{path}.{name}" if path else name
            if name == "type" and len(below.get("enum", ())) == 1:
                found.setdefault((here, ""), set()).update(kinds(below))
                continue
            found.setdefault((here, branch), set()).update(kinds(below))
            walk(below, here, "")

    walk(resolve(document), "", "")
    return found


def schema_fields() -> dict[tuple[str, str], set[str]]:
    """The same of the schemas."""
    found: dict[tuple[str, str], set[str]] = {}
    for field in fields():
        if field.name in COMPOSED:
            continue
        schema = field.schema
        if "enum" in schema:
            kinds = {"null" if value is None else f"={json.dumps(value)}" for value in schema["enum"]}
        elif "const" in schema:
            kinds = {"integer"}
        else:
            kinds = set([schema["type"]] if isinstance(schema["type"], str) else schema["type"])
            if words := re.fullmatch(r"\^\(?([a-z|]+)\)?\$", schema.get("pattern", "")):
                kinds = (kinds - {"string"}) | {f'="{word}"' for word in words[1].split("|")}
        found[(field.path, field.branch)] = kinds
    return found


def test_shapes_and_schemas_have_the_same_fields_of_the_same_types() -> None:
    assert shape_fields() == schema_fields()


def test_paths_with_positions_are_those_of_all_entries() -> None:
    assert generic("data.sources[12].file") == "data.sources[].file"
    assert [field.path for field in fields_at("data.sources[0].file")] == ["data.sources[].file"]
    assert sorted(field.branch for field in fields_at("train.optimizer.learning_rate")) == [
        "adamw",
        "adamw8bit",
        "muon",
    ]


def test_only_the_properties_of_the_chosen_branch_apply() -> None:
    optimizer = fields_at("train.optimizer")[0].schema
    assert "momentum" in properties(optimizer, {"type": "muon"})
    assert "momentum" not in properties(optimizer, {"type": "adamw"})
    assert list(properties(optimizer, {"type": "sgd"})) == ["type"]
