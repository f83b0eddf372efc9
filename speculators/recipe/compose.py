"""Several files made into one recipe: what it extends, the file itself, overlays, `--set`, and below all a preset.

Mappings merge deep; lists replace; null over a mapping deletes it, where null is not itself a value; a mapping whose
`type` changes replaces the old one whole. Every file counts once, where it is first named, so diamonds do no harm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from speculators.errors import RecipeError, UsageError
from speculators.recipe.nodes import Node, Path_, Text, dotted
from speculators.recipe.problems import entries
from speculators.recipe.schema import allows_null
from speculators.recipe.source import decode, kind, read, read_value
from speculators.shipped import shipped_folder

_SETTING = re.compile(r"(?P<path>[\w-]+(?:\.[\w-]+|\[\d+\])*)=(?P<value>.*)", re.DOTALL)
_PART = re.compile(r"([\w-]+)|\[(\d+)\]")


@dataclass(frozen=True)
class Composed:
    """The merged tree, the text of the recipe that was asked for, and every file that took part, bases first."""

    root: Node
    text: Text
    files: tuple[Path, ...]


def compose(path: Path, overlays: Sequence[Path] = (), sets: Sequence[str] = ()) -> Composed:
    """Read a recipe and merge everything that belongs to it; raises RecipeError, or UsageError for a missing file."""
    found: dict[Path, Node] = {}
    text = _gather(path, found, ())
    root = found[path.resolve()]
    for number, node in enumerate(found.values()):
        root = merge(root, node) if number else node
    files = list(found)
    for overlay in overlays:
        node = read(read_text(overlay))
        if isinstance(node.value, dict) and "extends" in node.value:
            raise RecipeError((node.value["extends"].problem("an overlay cannot extend anything", at_key=True),))
        root = merge(root, node, keep_places=True)
        files.append(overlay.resolve())
    for setting in sets:
        root = _set(root, setting)
    if isinstance(root.value, dict):
        root = replace(root, value={key: node for key, node in root.value.items() if key != "extends"})
        root = _with_preset(root, files)
    return Composed(root, text, tuple(files))


def merge(base: Node, over: Node, path: Path_ = (), *, keep_places: bool = False) -> Node:
    """`over` on top of `base`; a merged mapping stands where `over` has it, or where it was if `keep_places`."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict) or _changes_type(base, over):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        here = (*path, key)
        if node.value is None and key in merged and isinstance(merged[key].value, dict):
            if allows_null(dotted(here)):
                merged[key] = node
            else:
                del merged[key]
        elif key in merged:
            merged[key] = merge(merged[key], node, here, keep_places=keep_places)
        else:
            merged[key] = node
    return replace(base if keep_places else over, value=merged)


def find_recipe(name: str) -> Path:
    """The file behind a path or a shipped name; raises UsageError naming the nearest recipes when there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    found = find_shipped(name)
    if found is not None:
        return found
    if path.is_dir():
        raise UsageError(f"{name} is a folder, expected a recipe")
    raise no_such_recipe(name)


def no_such_recipe(name: str) -> UsageError:
    """The error for a name that is none, with the three nearest."""
    names = shipped_names()
    near = get_close_matches(Path(name).stem, names, n=3, cutoff=0.0)
    return UsageError(f"there is no recipe {name}: neither a file, nor shipped (nearest: {', '.join(near)})")


def find_shipped(name: str) -> Path | None:
    """The shipped file that a name means: `quickstart`, `bases/eagle3.yaml`, `recipes/quickstart.yaml`."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "://" in name:
        return None
    folder = shipped_folder("recipes")
    short = name.removeprefix("./").removeprefix("recipes/")
    return next((file for file in (folder / short, folder / f"{short}.yaml") if file.is_file()), None)


def shipped_names() -> list[str]:
    """The names of all recipes that came with us."""
    return sorted(file.stem for file in shipped_folder("recipes").glob("*.yaml"))


def read_text(path: Path) -> Text:
    """A file as text under the name that messages print; raises UsageError when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    name = _display(path)
    return Text(name, decode(name, content), path.resolve().parent)


def _gather(path: Path, found: dict[Path, Node], chain: tuple[Path, ...]) -> Text:
    """Read a file, after all that it extends, into `found`."""
    text = read_text(path)
    node = read(text)
    here = (*chain, path.resolve())
    for entry in _extended(node.value.get("extends") if isinstance(node.value, dict) else None):
        base = _base(entry)
        if base.resolve() in here:
            names = [_display(file) for file in (*here[here.index(base.resolve()) :], base.resolve())]
            raise RecipeError((entry.problem(f"`extends` goes in a circle: {' -> '.join(names)}"),))
        if base.resolve() not in found:
            _gather(base, found, here)
    found[path.resolve()] = node
    return text


def _extended(node: Node | None) -> list[Node]:
    if node is None:
        return []
    named = node.value if isinstance(node.value, list) else [node]
    for entry in named:
        if not isinstance(entry.value, str) or not entry.value:
            raise RecipeError((entry.problem(f"`extends` is {kind(entry.value)}, expected a path, or a list of them"),))
    return named


def _base(entry: Node) -> Path:
    name = str(entry.value)
    if "://" in name:
        hint = "only files and shipped recipes can be extended; copy the recipe beside this one and name its path"
        raise RecipeError((entry.problem(f"`extends` names a remote recipe, {name}", hint),))
    path = entry.text.folder / Path(name).expanduser()
    if path.is_file():
        return path
    shipped = find_shipped(name)
    if shipped is None:
        names = [*shipped_names(), *(f"bases/{file.name}" for file in shipped_folder("recipes").glob("bases/*.yaml"))]
        near = get_close_matches(name, names, n=3, cutoff=0.4) or names
        what = f"`extends` names {name}, which is neither a file beside this one nor shipped"
        raise RecipeError((entry.problem(what, f"nearest: {', '.join(near)}"),))
    return shipped


def _with_preset(root: Node, files: list[Path]) -> Node:
    """The recipe on top of what its `algorithm.preset` stands for, whose file is put before all `files`.

    A preset or a type that there is not is left for the schema to complain of.
    """
    section = root.value.get("algorithm") if isinstance(root.value, dict) else None
    if section is None or not isinstance(section.value, dict) or "preset" not in section.value:
        return root
    assert isinstance(root.value, dict)  # noqa: S101  it has the section
    preset, type_ = section.value["preset"].value, section.value.get("type")
    own = replace(section, value={name: node for name, node in section.value.items() if name != "preset"})
    if preset == "paper" and type_ is not None:
        path = find_shipped(f"bases/{type_.value}")
        base = read(read_text(path)).value if path is not None else None
        if path is None or not isinstance(base, dict) or "algorithm" not in base:
            return root
        own = merge(base["algorithm"], own, ("algorithm",))
        files[:] = [path.resolve(), *(file for file in files if file != path.resolve())]
    elif preset is not None:
        return root
    return replace(root, value={**root.value, "algorithm": own})


def _set(root: Node, setting: str) -> Node:
    """`--set path=value` on top of the recipe; the value is YAML, read under the pseudo-file `--set path=value`."""
    match = _SETTING.fullmatch(setting)
    if match is None:
        raise UsageError(f"--set {setting}: expected PATH=VALUE, such as --set train.epochs=2")
    text = Text(f"--set {setting}", setting, Path.cwd())
    # Blanks instead of the path: the value then has the columns it has in the setting.
    start = match.start("value")
    try:
        node = read_value(replace(text, text=" " * start + match["value"]))
    except RecipeError as error:
        raise RecipeError(tuple(replace(problem, source_line=setting) for problem in error.problems)) from error
    node = Node(None, text, 1, start + 1) if node is None else replace(node, text=text)
    node = _retold(node, text)
    parts: list[str | int] = [int(number) if number else word for word, number in _PART.findall(match["path"])]
    if parts[0] == "extends":
        raise RecipeError(
            (text.problem(1, 1, "`extends` cannot be set", "use --overlay to merge another file on top"),)
        )
    return _put(root, parts, node, text, ())


def _retold(node: Node, text: Text) -> Node:
    if isinstance(node.value, dict):
        return replace(node, text=text, value={key: _retold(child, text) for key, child in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, text=text, value=[_retold(child, text) for child in node.value])
    return replace(node, text=text)


def _put(here: Node, parts: Sequence[str | int], node: Node, text: Text, path: Path_) -> Node:
    part, rest = parts[0], parts[1:]
    below = (*path, part)
    column = len(dotted(path)) + (2 if path and isinstance(part, str) else 1)
    if isinstance(part, int):
        if not isinstance(here.value, list) or part >= len(here.value):
            size = f"has {entries(len(here.value))}" if isinstance(here.value, list) else f"is {kind(here.value)}"
            raise RecipeError((text.problem(1, column, f"there is no `{dotted(below)}`: `{dotted(path)}` {size}"),))
        items = list(here.value)
        old = items[part]
        items[part] = _put(old, rest, node, text, below) if rest else merge(old, node, below, keep_places=True)
        return replace(here, value=items)
    if rest:
        old_entry = here.value.get(part) if isinstance(here.value, dict) else None
        if old_entry is not None and isinstance(old_entry.value, dict | list):
            child = _put(old_entry, rest, node, text, below)
            # Every level so far is what it was, so putting the changed child back is no merge.
            assert isinstance(here.value, dict)  # noqa: S101  old_entry came out of it
            return replace(here, value={**here.value, part: child})
        if isinstance(rest[0], int):
            raise RecipeError((text.problem(1, column, f"there is no list `{dotted(below)}`"),))
        child = _put(Node({}, text, 1, column, 1, column), rest, node, text, below)
    else:
        child = replace(node, key_line=1, key_column=column)
    return merge(here, Node({part: child}, text, 1, 1), path, keep_places=True)


def _changes_type(base: Node, over: Node) -> bool:
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return False
    if "type" not in base.value or "type" not in over.value:
        return False
    return base.value["type"].value != over.value["type"].value


def _display(path: Path) -> str:
    """The path as short as it stays unmistakable: from here, or from the shipped recipes, or whole."""
    resolved = path.resolve()
    for folder in (Path.cwd(), shipped_folder("recipes")):
        if resolved.is_relative_to(folder):
            return resolved.relative_to(folder).as_posix()
    return str(resolved)
