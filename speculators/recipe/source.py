"""From YAML text to nodes: the JSON-like core of YAML 1.2 and nothing more, with the place of every key and value.

PyYAML's own loaders follow YAML 1.1, where `1e-4` is text, `no` is false, `1:30` is 90 and a key given twice counts as
the last. Only its parser is used here; events become nodes in one loop, so that neither deep nesting nor aliases that
multiply can exhaust the stack or the memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import yaml

from speculators.errors import RecipeError
from speculators.recipe.nodes import Node, Text, Value

MOST_VALUES = 20_000
DEEPEST = 64
MOST_BYTES = 1 << 20

_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_LARGEST = 2**63 - 1

# What PyYAML says, and what it means to somebody who writes a recipe.
_SYNTAX = (
    (
        "mapping values are not allowed",
        "a `:` is not expected here",
        "is the line indented as it should be? text that contains `: ` stands in quotes",
    ),
    ("expected <block end>", "the indentation does not fit", "keys of one section begin in the same column"),
    ("could not find expected ':'", "a `:` is missing after the key", ""),
    ("found unexpected end of stream", "a quoted text is not closed", ""),
    ("expected ',' or ']'", "a list is not closed, or lacks a comma", "write [a, b]"),
    ("expected ',' or '}'", "a mapping is not closed, or lacks a comma", "write {a: 1, b: 2}"),
    ("found undefined alias", "the alias names an anchor that does not exist", ""),
    ("undefined tag handle", "tags (!) are not read", "a recipe is plain data; remove the tag"),
    ("found character '%' that", "a value cannot begin with `%`", "put it in quotes"),
    ("found character '@' that", "a value cannot begin with `@`", "put it in quotes"),
    ("found character '`' that", "a value cannot begin with a backtick", "put it in quotes"),
    ("found unknown escape character", "this is no escape of YAML", "use single quotes, or double the backslash"),
    ("sequence entries are not allowed", "a list cannot begin here", "write `- ` on a line of its own"),
)
_UNFINISHED = {what for _, what, _ in _SYNTAX if what.endswith(("is not closed", "lacks a comma", "after the key"))}
"""These are better shown where the thing began than where it was missed."""


def decode(name: str, content: bytes) -> str:
    """The text of a recipe file; raises RecipeError when it is too big or not UTF-8."""
    nowhere = Text(name, "", Path())
    if len(content) > MOST_BYTES:
        what = f"the file has {len(content):,} bytes, at most {MOST_BYTES:,} are read"
        raise RecipeError((nowhere.problem(1, 1, what),))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        what = f"the byte 0x{content[error.start]:02x} is not UTF-8"
        raise RecipeError((nowhere.problem(line, column, what, "save the file as UTF-8"),)) from error


def read(text: Text) -> Node:
    """The nodes of a text whose root is a mapping; raises RecipeError for the first thing that is wrong."""
    root = read_value(text)
    if root is None:
        raise RecipeError((text.problem(1, 1, "the file is empty", "a recipe is a mapping: `recipe: 1` and so on"),))
    if not isinstance(root.value, dict):
        what = f"the root is {kind(root.value)}, expected a mapping"
        raise RecipeError((root.problem(what, "a recipe is a mapping: `recipe: 1` and so on"),))
    return root


def read_value(text: Text) -> Node | None:
    """The nodes of a text with any root, None when there is none; raises RecipeError as `read` does."""
    reader = _Reader(text)
    try:
        for event in yaml.parse(text.text, Loader=yaml.SafeLoader):
            reader.take(event)
    except yaml.reader.ReaderError as error:
        line = text.text.count("\n", 0, error.position) + 1
        column = error.position - text.text.rfind("\n", 0, error.position)
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise RecipeError(
            (text.problem(line, column, f"the character U+{code:04X} is not allowed in YAML"),)
        ) from error
    except yaml.MarkedYAMLError as error:
        raise _syntax(text, error) from error
    return reader.root


def kind(value: object) -> str:
    """What a value is, in a word."""
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "text"),
        (dict, "a mapping"),
        (list, "a list"),
    )
    return next((name for types, name in names if isinstance(value, types)), "null")


@dataclass
class _Open:
    """A collection that is being read."""

    node: Node
    anchor: str | None
    depth: int
    key: tuple[str, int, int] | None = None
    size: int = 1
    height: int = 1


@dataclass
class _Anchored:
    node: Node
    size: int
    height: int


@dataclass
class _Reader:
    text: Text
    root: Node | None = None
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, _Anchored | None] = field(default_factory=dict)
    documents: int = 0
    values: int = 0

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.fail(event, "a second document begins here", "a recipe is one document; remove `---`")
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            self.scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.end(event)

    def begin(self, event: yaml.CollectionStartEvent) -> None:
        self.refuse_tag(event)
        if self.expects_key():
            self.fail(event, f"a key is {'a list' if _is_list(event) else 'a mapping'}", "keys are words")
        if len(self.stack) >= DEEPEST:
            self.fail(event, f"nested deeper than {DEEPEST} levels", "no recipe is that deep")
        if event.anchor:
            self.anchors[event.anchor] = None  # open: an alias to it now would be a cycle
        value: Value = [] if _is_list(event) else {}
        self.stack.append(_Open(self.node(value, event), event.anchor, len(self.stack) + 1))
        self.count(1, event)

    def end(self, event: yaml.CollectionEndEvent) -> None:
        done = self.stack.pop()
        if done.anchor:
            self.anchors[done.anchor] = _Anchored(done.node, done.size, done.height)
        self.add(done.node, done.size, done.height)

    def scalar(self, event: yaml.ScalarEvent) -> None:
        self.refuse_tag(event)
        is_plain = event.style is None
        if self.expects_key():
            self.key(event, is_plain=is_plain)
            return
        value = self.resolve(event) if is_plain else event.value
        node = replace(self.node(value, event), quoted=not is_plain)
        if event.anchor:
            self.anchors[event.anchor] = _Anchored(node, 1, 0)
        self.count(1, event)
        self.add(node, 1, 0)

    def alias(self, event: yaml.AliasEvent) -> None:
        if self.expects_key():
            self.fail(event, "a key is an alias", "keys are words")
        if event.anchor not in self.anchors:
            self.fail(event, f"the alias *{event.anchor} names an anchor that does not exist")
        found = self.anchors[event.anchor]
        if found is None:
            self.fail(event, f"the alias *{event.anchor} contains itself")
        self.count(found.size, event)
        if len(self.stack) + found.height > DEEPEST:
            self.fail(event, f"nested deeper than {DEEPEST} levels", "no recipe is that deep")
        line, column = _place(event)
        self.add(replace(found.node, line=line, column=column), found.size, found.height)

    def key(self, event: yaml.ScalarEvent, *, is_plain: bool) -> None:
        parent = self.stack[-1]
        key = event.value
        if is_plain and key == "<<":
            self.fail(event, "merge keys (<<) are not read", "use `extends` to build on another file")
        if is_plain and not isinstance(self.resolve(event), str):
            what = f"the key {key or 'null'} is {kind(self.resolve(event))}, expected text"
            self.fail(event, what, "put it in quotes" if key else "")
        entries = parent.node.value
        if isinstance(entries, dict) and key in entries:
            first = entries[key].key_line
            self.fail(event, f"`{key}` is given twice (first on line {first})", "remove one of the two")
        parent.key = (key, *_place(event))

    def expects_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].node.value, dict) and self.stack[-1].key is None

    def add(self, node: Node, size: int, height: int) -> None:
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        parent.size += size
        parent.height = max(parent.height, height + 1)
        entries = parent.node.value
        if isinstance(entries, dict) and parent.key is not None:
            key, line, column = parent.key
            entries[key] = replace(node, key_line=line, key_column=column)
            parent.key = None
        elif isinstance(entries, list):
            entries.append(node)

    def resolve(self, event: yaml.ScalarEvent) -> bool | int | float | str | None:
        """The core schema of YAML 1.2."""
        written: str = event.value
        if written in _WORDS:
            return _WORDS[written]
        if _NOT_FINITE.fullmatch(written):
            self.fail(event, f"{written} is no finite number")
        number: int | float | None = None
        if _INTEGER.fullmatch(written):
            number = int(written) if len(written) < 30 else math.inf
        elif _OCTAL.fullmatch(written) or _HEXADECIMAL.fullmatch(written):
            number = int(written, 0) if len(written) < 30 else math.inf
        elif _FLOAT.fullmatch(written):
            number = float(written)
        if number is None:
            return written
        if math.isinf(number) or (isinstance(number, int) and abs(number) > _LARGEST):
            self.fail(event, f"{written[:40]} is too large a number")
        return number

    def count(self, size: int, event: yaml.Event) -> None:
        self.values += size
        if self.values > MOST_VALUES:
            what = f"more than {MOST_VALUES:,} values, aliases included"
            self.fail(event, what, "no recipe is that large; is an alias repeated?")

    def refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.fail(event, f"the tag {tag} is not read", "a recipe is plain data; remove the tag")

    def node(self, value: Value, event: yaml.Event) -> Node:
        return Node(value, self.text, *_place(event))

    def fail(self, event: yaml.Event, what: str, hint: str = "") -> NoReturn:
        raise RecipeError((self.text.problem(*_place(event), what, hint),))


def _place(event: yaml.Event) -> tuple[int, int]:
    """Line and column, from 1; only events made by hand have none."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _is_list(event: yaml.Event) -> bool:
    return isinstance(event, yaml.SequenceStartEvent)


def _syntax(text: Text, error: yaml.MarkedYAMLError) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    said = error.problem or str(error)
    if text.line(line)[column - 1 : column] == "\t" or "'\\t'" in said:
        what, hint = "a tab is used as a space", "YAML is indented with spaces"
        return RecipeError((text.problem(line, column, what, hint),))
    known = next(((what, hint) for theirs, what, hint in _SYNTAX if theirs in said), None)
    if known is not None and known[0] in _UNFINISHED and error.context_mark:
        line, column = error.context_mark.line + 1, error.context_mark.column + 1
    return RecipeError((text.problem(line, column, *(known or (said, ""))),))
