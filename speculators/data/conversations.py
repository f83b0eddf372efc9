"""Conversations in one normal form, whatever columns they came in.

Recognised rows: `messages` (role, content), ShareGPT's `conversations` (from, value), `prompt` with or without
`response`, `instruction` (with `input`) with or without `output`, and plain `text`. A row may bring its own `id`,
`category`, `split` and `tools`. Turns keep what chat templates read beside the text: thoughts, tool calls and results.
A user's turn may have images among its text (`data/images.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from speculators.data.images import is_image
from speculators.errors import UsageError

Keep = Callable[[Mapping[str, Any], str], str]
"""Keeps the image that a part of a message names (`images.Album.keep`), and gives its file name."""

Split = Literal["train", "holdout"]

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names under which data sets keep what the assistant thought before it answered; the first is the templates'."""
_BESIDE = ("tool_calls", "tool_call_id", "name")
_HOLDOUT_NAMES = ("holdout", "test", "validation", "valid", "eval")
_SHAPES = "`messages`, `conversations`, `prompt` (and `response`), `instruction` (and `output`), or `text`"


@dataclass(frozen=True)
class Message:
    """One turn: of system, user, assistant or tool.

    `content` is its text, or parts where there are images among it: `{type: text, text}` and `{type: image, image}`,
    the latter with the file name of an image that the artifact keeps. `beside` is what templates read beside the text:
    `reasoning_content`, `tool_calls`, `tool_call_id`, `name`.
    """

    role: str
    content: str | tuple[Mapping[str, str], ...]
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the turn says, its images left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part["text"] for part in self.content if part["type"] == "text")

    @property
    def images(self) -> tuple[str, ...]:
        """File names of its images, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part["image"] for part in self.content if part["type"] == "image")

    @property
    def whole(self) -> str:
        """All text of the turn, for looking for something in it."""
        return f"{self.text}\n{json.dumps(self.beside, ensure_ascii=False)}" if self.beside else self.text

    def to_json(self) -> dict[str, Any]:
        """The turn as chat templates take it."""
        content = self.content if isinstance(self.content, str) else [dict(part) for part in self.content]
        return {"role": self.role, "content": content, **self.beside}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Message:
        """Read what `to_json` wrote."""
        content = item["content"] if isinstance(item["content"], str) else tuple(item["content"])
        return cls(item["role"], content, {name: item[name] for name in item if name not in ("role", "content")})


@dataclass(frozen=True)
class Conversation:
    """A conversation, ending with a user's turn or a tool's (a prompt) or an assistant's (with an answer).

    `tools` are the functions that the assistant may call, as JSON schemas.
    """

    id: str
    messages: tuple[Message, ...]
    split: Split
    category: str | None
    source: str
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def prompt(self) -> str:
        """The first thing the user says."""
        return next((message.text for message in self.messages if message.role == "user"), "")

    @property
    def images(self) -> tuple[str, ...]:
        """File names of all images, in order."""
        return tuple(name for message in self.messages for name in message.images)

    def as_prompt(self) -> Conversation:
        """The same without the assistant's last turns, so that the verifier can answer."""
        kept = list(self.messages)
        while kept and kept[-1].role not in ("user", "tool"):
            kept.pop()
        return replace(self, messages=tuple(kept))

    def to_json(self) -> dict[str, Any]:
        """The object of one line of prompts.jsonl."""
        return {
            "id": self.id,
            "messages": [message.to_json() for message in self.messages],
            "split": self.split,
            "category": self.category,
            "source": self.source,
            **({"tools": list(self.tools)} if self.tools else {}),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Conversation:
        """Read what `to_json` wrote; further fields are ignored."""
        messages = tuple(Message.from_json(item) for item in record["messages"])
        tools = tuple(record.get("tools", ()))
        return cls(record["id"], messages, record["split"], record["category"], record["source"], tools)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .json (a list) or .parquet file.

    Raises UsageError for another ending, and for a line that is not a JSON object, naming it.
    """
    if not file.is_file():
        raise UsageError(f"`data.sources`: there is no file {file}")
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
    elif file.suffix == ".json":
        yield from _checked(enumerate(_parse(file.read_text(encoding="utf-8"), str(file)), 1), file)
    elif file.suffix in {".jsonl", ".ndjson"}:
        with file.open(encoding="utf-8") as lines:
            yield from _checked(
                ((n, _parse(line, f"{file}:{n}")) for n, line in enumerate(lines, 1) if line.strip()), file
            )
    else:
        raise UsageError(
            f"`data.sources`: {file} ends in {file.suffix!r}; prompts are read from .jsonl, .json or .parquet"
        )


def conversation(
    row: Mapping[str, Any], *, source: str, holdout: float, where: str = "", keep: Keep | None = None
) -> Conversation | None:
    """A row in the normal form; None when it holds no user's turn.

    A row without an id gets one from its content; without a split, it goes to the holdout by a hash of its id,
    with probability `holdout`. Images are handed to `keep`. Raises UsageError when no known columns are there, and for
    an image that cannot be read, naming the row by `where`.
    """
    messages = _merge_roles(_messages(row, where or source, keep))
    if not any(message.role == "user" and (message.text.strip() or message.images) for message in messages):
        return None
    tools = _tools(row, where or source)
    identity = str(row["id"]) if isinstance(row.get("id"), str | int) else identify(messages, tools)
    return Conversation(
        id=identity,
        messages=messages,
        split=_own_split(row) or assign_split(identity, holdout),
        category=str(row["category"]) if row.get("category") else None,
        source=source,
        tools=tools,
    )


def identify(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """A stable id: 16 hexadecimal digits of the sha256 over roles and content, wherever they were read."""
    turns: list[Any] = [
        [message.role, message.content, *([message.beside] if message.beside else [])] for message in messages
    ]
    content = json.dumps([*turns, *([list(tools)] if tools else [])], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def assign_split(identity: str, holdout: float) -> Split:
    """A fixed share of all ids is held out: the same id always, whatever else is in the data."""
    number = int.from_bytes(hashlib.sha256(f"holdout/{identity}".encode()).digest()[:8], "big")
    return "holdout" if number < holdout * 2**64 else "train"


def normalized(text: str) -> str:
    """Text for comparing prompts: compatibility forms, case and runs of white space do not count."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def without_repeats(conversations: Iterable[Conversation]) -> list[Conversation]:
    """Each id once, and nothing in train whose prompt is also held out (the first holdout prompt of a kind stays).

    The same words about other images are another prompt. Two rows with one id but different content, or other
    tools, both stay; the later one gets an id from its content.
    """
    every = list(conversations)
    held_out = {_asked(item) for item in every if item.split == "holdout"}
    kept: dict[str, Conversation] = {}
    for item in every:
        if item.split == "train" and _asked(item) in held_out:
            continue
        if item.id in kept and (kept[item.id].messages, kept[item.id].tools) != (item.messages, item.tools):
            item = replace(item, id=f"{item.id}-{identify(item.messages, item.tools)}")
        kept.setdefault(item.id, item)
    return list(kept.values())


def write_conversations(file: Path, conversations: Iterable[Conversation]) -> None:
    """One JSON object a line, in the order given."""
    with file.open("w", encoding="utf-8") as stream:
        for item in conversations:
            stream.write(json.dumps(item.to_json(), ensure_ascii=False) + "\n")


def read_conversations(file: Path) -> list[Conversation]:
    """Read what `write_conversations` wrote."""
    with file.open(encoding="utf-8") as stream:
        return [Conversation.from_json(json.loads(line)) for line in stream]


def _asked(item: Conversation) -> tuple[str, tuple[str, ...]]:
    """What the user asks first, for comparing: words and images."""
    first = next((message for message in item.messages if message.role == "user"), None)
    return normalized(item.prompt), first.images if first is not None else ()


def _messages(row: Mapping[str, Any], where: str, keep: Keep | None) -> list[Message]:
    if isinstance(row.get("messages"), list):
        return [_turn(item, "role", "content", where, keep) for item in row["messages"]]
    if isinstance(row.get("conversations"), list):
        is_shared = all(isinstance(item, dict) and "from" in item for item in row["conversations"])
        keys = ("from", "value") if is_shared else ("role", "content")
        return [_turn(item, *keys, where, keep) for item in row["conversations"]]
    found: list[Message] = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        found.append(Message("system", row["system"]))
    if isinstance(row.get("instruction"), str):
        extra = row.get("input")
        text = f"{row['instruction']}\n\n{extra}" if isinstance(extra, str) and extra.strip() else row["instruction"]
        return [*found, Message("user", text), *_answer(row, "output", "response")]
    for name in ("prompt", "text"):
        if isinstance(row.get(name), str):
            return [*found, Message("user", row[name]), *_answer(row, "response", "completion")]
    columns = ", ".join(f"`{name}`" for name in row) or "none"
    raise UsageError(f"`data.sources`: {where} has the columns {columns}; expected {_SHAPES}")


def _answer(row: Mapping[str, Any], *names: str) -> list[Message]:
    return next(([Message("assistant", row[name])] for name in names if isinstance(row.get(name), str)), [])


def _turn(item: Mapping[str, Any], role_key: str, text_key: str, where: str, keep: Keep | None) -> Message:
    try:
        role, text = str(item[role_key]), item[text_key]
    except (KeyError, TypeError) as error:
        raise UsageError(f"`data.sources`: a turn in {where} lacks `{role_key}` or `{text_key}`") from error
    if role not in _ROLES:
        raise UsageError(f"`data.sources`: {where} has the role {role!r}; known roles: {', '.join(_ROLES)}")
    beside = {name: item[name] for name in _BESIDE if item.get(name)}
    thoughts = next((item[name] for name in _THOUGHTS if isinstance(item.get(name), str) and item[name]), None)
    if thoughts is not None:
        beside[_THOUGHTS[0]] = thoughts
    return Message(_ROLES[role], _content(text, _ROLES[role], where, keep), beside)


def _content(content: object, role: str, where: str, keep: Keep | None) -> str | tuple[Mapping[str, str], ...]:
    """A turn's text, given as such or in parts; none where there are only tool calls; parts where it has images."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise UsageError(
            f"`data.sources`: the content of a turn in {where} is of the type {type(content).__name__}; "
            "expected text or a list of parts"
        )
    parts: list[Mapping[str, str]] = []
    for part in content:
        if keep is not None and is_image(part):  # first: tables give every part every column, a `text` of "" too
            if role != "user":
                raise UsageError(f"`data.sources`: {where} has an image in a turn of {role}; users show images")
            if part.get("text"):
                raise UsageError(f"`data.sources`: {where} has an image with a `text`; write it as a part of its own")
            parts.append({"type": "image", "image": keep(part, where)})
        elif isinstance(part, dict) and not is_image(part) and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            kind = part.get("type") if isinstance(part, dict) else part
            raise UsageError(
                f"`data.sources`: a turn in {where} has a part of the type {kind!r}; read are text, image and image_url"
            )
    if any(part["type"] == "image" for part in parts):
        return tuple(parts)
    return "".join(part["text"] for part in parts)


def _parts(content: str | tuple[Mapping[str, str], ...]) -> tuple[Mapping[str, str], ...]:
    return ({"type": "text", "text": content},) if isinstance(content, str) else content


def _joined(one: Message, other: Message) -> str | tuple[Mapping[str, str], ...]:
    """The content of two turns as that of one."""
    if isinstance(one.content, str) and isinstance(other.content, str):
        return f"{one.content}\n\n{other.content}"
    return (*_parts(one.content), {"type": "text", "text": "\n\n"}, *_parts(other.content))


def _tools(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """The functions of a row, a list or one written as JSON."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _parse(tools, where) if tools.strip() else None
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UsageError(f"`data.sources`: the `tools` of {where} are not a list of JSON schemas")
    return tuple(tools)


def _merge_roles(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Turns of one speaker in a row become one: many chat templates refuse them otherwise.

    Those of tools stay apart, and those with something beside their text.
    """
    merged: list[Message] = []
    for message in messages:
        plain = merged and not (merged[-1].beside or message.beside) and message.role != "tool"
        if plain and merged[-1].role == message.role:
            merged[-1] = Message(message.role, _joined(merged[-1], message))
        else:
            merged.append(message)
    while merged and merged[0].role in ("assistant", "tool"):
        merged.pop(0)
    return tuple(merged)


def _own_split(row: Mapping[str, Any]) -> Split | None:
    split = row.get("split")
    if not isinstance(split, str):
        return None
    return "holdout" if split.lower() in _HOLDOUT_NAMES else "train"


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"`data.sources`: {where} is not JSON: {error}") from error


def _checked(numbered: Iterable[tuple[int, Any]], file: Path) -> Iterator[dict[str, Any]]:
    for number, row in numbered:
        if not isinstance(row, dict):
            raise UsageError(f"`data.sources`: {file}, row {number} is not a JSON object")
        yield row


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()
