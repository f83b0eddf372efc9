"""What a schema finds wrong, said so that it can be mended: the value, what is allowed, and the nearest right word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from speculators.errors import Problem
from speculators.recipe.locate import Origins
from speculators.recipe.nodes import Path_, dotted
from speculators.recipe.schema import Field, fields, fields_at, generic
from speculators.recipe.vocabulary import BOOLEANS, KEYS, VALUES
from speculators.recipe.write import inline

if TYPE_CHECKING:
    from jsonschema import ValidationError

_NAMES = {"object": "mapping", "array": "list", "string": "text"}
_GROUPED = re.compile(r"[-+]?\d{1,3}([_,]\d{3})+|[-+]?\d+(_\d+)+")
_BOUNDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "maxLength": "is longer than {} characters",
}


def problems(errors: Iterable[ValidationError], origins: Origins) -> list[Problem]:
    """Every error of a validation as a problem, in no order."""
    return [problem for error in errors for problem in _problems(error, origins)]


def _problems(error: ValidationError, origins: Origins) -> Iterator[Problem]:
    path: Path_ = tuple(error.absolute_path)
    rule, value, limit = str(error.validator), _any(error.instance), _any(error.validator_value)
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    name = f"`{dotted(path)}`" if path else "the recipe"
    if rule == "additionalProperties":
        for key in value:
            if key not in schema["properties"]:
                yield _unknown(path, key, schema["properties"], value, origins)
    elif rule == "required":
        for key in limit:
            if key not in value:
                here = (*path, key)
                found = next(iter(fields_at(dotted(here))), None)
                yield origins.problem(path, f"`{dotted(here)}` is missing", _such_as(key, found))
    elif rule == "type":
        yield origins.problem(
            path, f"{name} is {_shown(value)}, expected {expected(schema)}", _retype(path, error, origins)
        )
    elif rule == "enum":
        yield origins.problem(path, f"{name} is {_quoted(value)}", _nearest_value(value, limit))
    elif rule == "const" and path == ("recipe",):
        what = f"`recipe` is {_shown(value)}, but this version of speculators reads recipe: {limit}"
        is_newer = isinstance(value, int) and value > limit
        yield origins.problem(path, what, "install a newer speculators" if is_newer else f"write recipe: {limit}")
    elif rule == "pattern":
        if _isinline(limit):
            yield origins.problem(
                path, f"{name} is {_shown(value)}, expected {expected(schema)}", _unquote(path, schema, origins)
            )
        else:
            yield origins.problem(path, f"{name} is {_quoted(value)}", f"allowed: {schema.get('x-allowed', limit)}")
    elif rule in _BOUNDS:
        yield origins.problem(path, f"{name} is {_shown(value)}, {_BOUNDS[rule].format(limit)}")
    elif rule == "minLength" or (rule == "minItems" and not value):
        yield origins.problem(path, f"{name} is empty")
    elif rule in ("minItems", "maxItems"):
        count = "exactly" if schema.get("minItems") == schema.get("maxItems") else "at least"
        yield origins.problem(path, f"{name} has {entries(len(value))}, expected {count} {limit}")
    elif rule == "uniqueItems":
        place = next(place for place, item in enumerate(value) if item in value[:place])
        yield origins.problem((*path, place), f"{name} names {inline(value[place])} twice")
    else:  # a rule that our schemas do not use; a test keeps it so
        yield origins.problem(path, f"{name}: {error.message}")


def expected(schema: Mapping[str, Any]) -> str:
    """The types a schema allows, in words: `integer or null`, `list or auto`."""
    types = schema.get("type", [])
    names = [_NAMES.get(name, name) for name in ([types] if isinstance(types, str) else types)]
    if _isinline(schema.get("pattern", "")) and "text" in names:
        names[names.index("text")] = schema["pattern"].strip("^$")
        names.sort(key=lambda name: name == schema["pattern"].strip("^$"))
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def entries(count: int) -> str:
    """`1 entry`, `3 entries`."""
    return f"{count} {'entry' if count == 1 else 'entries'}"


def _unknown(path: Path_, key: str, known: Mapping[str, Any], section: Mapping[str, Any], origins: Origins) -> Problem:
    what = f"unknown key `{key}`" + (f" in `{dotted(path)}`" if path else "")
    written = origins.find(path)
    taken = written.value if written is not None and isinstance(written.value, dict) else {}
    free = [name for name in known if name not in taken]
    return origins.problem((*path, key), what, _meant(path, key, free, section))


def _meant(path: Path_, key: str, free: Sequence[str], section: Mapping[str, Any]) -> str:
    here = generic(dotted(path))
    same = [field for field in fields() if field.name == key]
    for field in same:
        if field.section == here and field.branch:
            return f"`{key}` is an option of {field.branch}, this is {section.get('type')}"
    alias = KEYS.get(key.lower())
    if alias is not None:
        return f"`{key}` is `{alias}` here"
    near = get_close_matches(key, free, n=1, cutoff=0.75) or get_close_matches(key.lower(), free, n=1, cutoff=0.75)
    if near:
        return f"did you mean `{near[0]}`?"
    if same:
        places = list(dict.fromkeys(field.section for field in same))
        shown = " or ".join(f"`{place}`" if place else "the top of the recipe" for place in places[:2])
        return f"`{key}` belongs to {shown}"
    far = get_close_matches(key, [field.name for field in fields()], n=1, cutoff=0.85)
    if far:
        field = next(field for field in fields() if field.name == far[0])
        return f"did you mean `{field.path}`?"
    return f"allowed: {', '.join(free)}"


def _nearest_value(value: object, allowed: Sequence[object]) -> str:
    words = [inline(item) for item in allowed]
    every = f"allowed: {', '.join(words)}"
    if not isinstance(value, str):
        return every
    alias = VALUES.get(value.lower())
    if alias in words:
        return f"{value} is spelled {alias} here; {every}"
    near = get_close_matches(value.lower(), words, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`? {every}" if near else every


def _retype(path: Path_, error: ValidationError, origins: Origins) -> str:
    """What to write instead of a value of the wrong type, when that can be told."""
    value = _any(error.instance)
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if isinstance(value, str):
        if path == ("verifier",):
            return f"write verifier: {{model: {value}}}"
        if "boolean" in types and value.lower() in BOOLEANS:
            return f"write {BOOLEANS[value.lower()]}; YAML 1.2 reads {value} as text"
        if _GROUPED.fullmatch(value):
            return f"write {value.replace('_', '').replace(',', '')}"
        if (hint := _unquote(path, schema, origins)) != "":
            return hint
    if "array" in types and not isinstance(value, list | dict) and value is not None:
        return f"write [{inline(value)}]"
    if value is None and "default" in schema:
        return f"leave it out for the default, {inline(schema['default'])}"
    if "string" in types and isinstance(value, int | float) and "pattern" not in schema:
        return "put it in quotes"
    if "object" in types:
        names = dict.fromkeys(field.name for field in fields() if field.section == generic(dotted(path)))
        return f"its keys: {', '.join(names)}"
    return ""


def _unquote(path: Path_, schema: Mapping[str, Any], origins: Origins) -> str:
    """A hint to drop the quotes, where what is inside them would do."""
    from speculators.errors import RecipeError
    from speculators.recipe.source import read_value

    node = origins.find(path)
    if node is None or not node.quoted or not isinstance(node.value, str):
        return ""
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    try:
        inside = read_value(type(node.text)("", node.value, node.text.folder))
    except RecipeError:
        return ""
    value = None if inside is None else inside.value
    fits = {
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    return "write it without quotes" if any(fits.get(name, False) for name in types) else ""


def _any(value: object) -> Any:
    return value


def _such_as(key: str, field: Field | None) -> str:
    examples = field.schema.get("examples") if field else None
    return f"such as {key}: {inline(examples[0])}" if examples else ""


def _isinline(pattern: str) -> bool:
    return re.fullmatch(r"\^\w+\$", pattern) is not None


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:76] + "..."


def _quoted(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else _shown(value)
