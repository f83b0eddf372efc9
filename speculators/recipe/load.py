"""From a name or a path to a typed recipe: composed, filled with defaults, validated, and checked across fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from speculators.errors import Problem, RecipeError
from speculators.recipe.compose import Composed, compose, find_recipe, find_shipped
from speculators.recipe.crossfield import findings
from speculators.recipe.locate import Origins, in_order
from speculators.recipe.nodes import Node, dotted, plain, walk
from speculators.recipe.problems import problems
from speculators.recipe.schema import fields_at, fill, recipe_schema
from speculators.recipe.shapes.recipe import Recipe


@dataclass(frozen=True)
class Loaded:
    """A recipe that may be run: typed, and as plain data with every default filled in.

    `path` is the file that was asked for, `text` its content, `files` everything that was merged, bases first.
    """

    recipe: Recipe
    data: dict[str, Any]
    origins: Origins
    path: Path
    text: str
    files: tuple[Path, ...]

    def origin(self, path: str) -> str:
        """Where a value comes from, in words: `bases/eagle3.yaml:4:3`, `--set`, or `schema default`."""
        return self.origins.origin(path)


def load_recipe(
    name_or_path: str | Path,
    overlays: Sequence[str | Path] = (),
    sets: Sequence[str] = (),
    *,
    trust_remote_code: bool | None = None,
) -> Loaded:
    """Load a recipe file, or a shipped recipe by its name.

    `overlays` are files merged on top, then `sets` are `path=value`. `trust_remote_code` is what the command line says
    about running a model's own code; None: it was not asked, as nothing will be run.
    Raises RecipeError with every problem, ordered by place, and UsageError when a file is not there.
    """
    path = find_recipe(str(name_or_path))
    composed = compose(path, [Path(overlay).expanduser() for overlay in overlays], sets)
    origins = Origins(composed.root, composed.text)
    data = fill(plain(composed.root))
    if _converts(data):
        data.pop("train", None)  # filled in with defaults, or reported below
    found = problems(_validate(data), origins) + _of_no_use(data, composed.root)
    if not found:
        found = _resolve_paths(data, composed.root)
    if found:
        raise RecipeError(in_order(found))
    recipe = recipe_of(data)
    wrong = findings(recipe, trust_remote_code=trust_remote_code)
    if wrong:
        raise RecipeError(in_order(origins.problem(item.path, item.what, item.hint) for item in wrong))
    return _loaded(recipe, data, origins, composed, path)


def recipe_of(data: Mapping[str, Any]) -> Recipe:
    """The typed recipe of plain data that was validated before, as `Loaded.data` is."""
    return msgspec.convert(dict(data), Recipe)


def _loaded(recipe: Recipe, data: dict[str, Any], origins: Origins, composed: Composed, path: Path) -> Loaded:
    return Loaded(recipe, data, origins, path.resolve(), composed.text.text, composed.files)


def _validate(data: dict[str, Any]) -> Any:
    from jsonschema import Draft202012Validator

    yield from Draft202012Validator(dict(recipe_schema())).iter_errors(data)
    if not _converts(data):
        yield from Draft202012Validator({"required": list(_OF_TRAINING)}).iter_errors(data)


_OF_TRAINING = ("algorithm", "data")


def _converts(data: Mapping[str, Any]) -> bool:
    convert = data.get("convert")
    return isinstance(convert, Mapping) and convert.get("source") is not None


def _of_no_use(data: Mapping[str, Any], root: Node) -> list[Problem]:
    """Sections about training, in a recipe that converts a draft: what they say would be passed over in silence."""
    written = root.value if isinstance(root.value, dict) and _converts(data) else {}
    hint = "remove it, or `convert.source`; what comes from a base recipe is taken back with null"
    return [
        written[name].problem(f"`{name}` is of no use: the draft is converted, not trained", hint, at_key=True)
        for name in (*_OF_TRAINING, "train")
        if name in written
    ]


def _resolve_paths(data: dict[str, Any], root: Node) -> list[Problem]:
    """Make every path in `data` absolute, seen from the file that wrote it; shipped files are found by their names."""
    found: list[Problem] = []
    for path, node in walk(root):
        if not isinstance(node.value, str) or not path:
            continue
        rule = next((field.schema.get("x-path") for field in fields_at(dotted(path))), None)
        if rule is None or (rule == "dotted" and not _is_path(node.value)):
            continue
        file = node.text.folder / Path(node.value).expanduser()
        if rule == "always" and not file.is_file():
            shipped = find_shipped(node.value)
            if shipped is None:
                found.append(node.problem(f"there is no file {node.value}", f"looked for {file}", at_key=True))
            file = shipped or file
        elif not file.exists():
            found.append(node.problem(f"there is no {node.value}", f"looked for {file}", at_key=True))
        _put(data, path, str(file.resolve()))
    return found


def _is_path(value: str) -> bool:
    return "://" not in value and (value.startswith(("./", "../", "~", "/")) or value.endswith(".gguf"))


def _put(data: Any, path: Sequence[str | int], value: str) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value
