"""The verifier's tokenizer and chat template: rendering conversations, and finding which tokens the assistant wrote.

Most templates carry no `{% generation %}` marks, so the assistant's tokens are found by comparing renderings: what the
template gives for the messages before a turn, with the generation prompt, must be the beginning of the whole; the turn
goes from there to its stop token. Where a prompt opens the thoughts that later renderings leave out, the turn begins
with the first token that differs from the prompt's opening.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speculators.errors import UsageError

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of the functions that the assistant may call."""

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>")
"""End-of-turn tokens of the usual templates; tokenizers often name only another token as their end of sequence."""

_CHANNELS, _PART_END = "<|channel|>", "<|end|>"
"""Tokenizers with the first end parts of an answer with the second: it ends a turn in the past, and stops nothing."""

_SENTINEL = "SENTINEL"
_SAMPLE = ({"role": "user", "content": _SENTINEL}, {"role": "assistant", "content": _SENTINEL})


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with a chat template, and what the rest of the pipeline needs to know of both.

    `stop_ids` end an answer, `turn_ends` are these and what ends a turn of the past; `special_ids` are the former and
    every special token that the template writes.
    """

    tokenizer: Any
    stop_ids: tuple[int, ...]
    special_ids: tuple[int, ...]
    tokenizer_sha256: str
    chat_template_sha256: str
    turn_ends: frozenset[int]

    @classmethod
    def load(cls, directory: Path, *, trust_remote_code: bool = False) -> ChatTokenizer:
        """Load the tokenizer of a checkpoint directory; raises UsageError when it has no chat template."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=trust_remote_code
        )
        if not tokenizer.chat_template:
            raise UsageError(f"the tokenizer in {directory} has no chat template; conversations cannot be rendered")
        template = tokenizer.get_chat_template()
        vocabulary = tokenizer.get_added_vocab()
        ends = [token for token in _TURN_ENDS if token in vocabulary and token in tokenizer.chat_template]
        stopping = [name for name in ends if name != _PART_END or _CHANNELS not in vocabulary]
        stops = _stop_ids(tokenizer, directory, [vocabulary[token] for token in stopping])
        rendered = _render(tokenizer, _SAMPLE, add_generation_prompt=True)
        used = {number for number in rendered if number in set(tokenizer.all_special_ids)}
        return cls(
            tokenizer=tokenizer,
            stop_ids=stops,
            special_ids=tuple(sorted(used | set(stops))),
            tokenizer_sha256=_file_digest(directory),
            chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
            turn_ends=frozenset((*stops, *(vocabulary[token] for token in ends))),
        )

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Tools = ()
    ) -> list[int]:
        """The token ids of a conversation, with the opening of an assistant's turn if asked for."""
        return _render(self.tokenizer, messages, add_generation_prompt=add_generation_prompt, tools=tools)

    def render_with_mask(
        self, messages: Sequence[Message], *, train_on: Literal["assistant", "all"] = "assistant", tools: Tools = ()
    ) -> tuple[list[int], list[int]]:
        """The token ids of a conversation and a mask of ones where the assistant wrote the token, its stop included.

        Thoughts and tool calls are the assistant's, what tools answer is not. `train_on="all"` masks nothing out.
        Raises UsageError, naming the turn, when the template renders a turn differently depending on what follows it,
        so that the assistant's tokens cannot be told apart.
        """
        whole = self.render(messages, tools=tools)
        if train_on == "all":
            return whole, [1] * len(whole)
        mask = [0] * len(whole)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = self._assistant_span(whole, messages, turn, tools)
                mask[start:end] = [1] * (end - start)
        return whole, mask

    def user_opening(self) -> list[int]:
        """What comes before the text of a first user turn: given this, the verifier writes the user's message itself.

        Raises UsageError when the template does not put the user's text into the rendering as it is.
        """
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": _SENTINEL}], tokenize=False, add_generation_prompt=True
        )
        before, found, _ = text.partition(_SENTINEL)
        if not found:
            raise UsageError("the chat template does not render the user's text as it is; Magpie needs that it does")
        return list(self.tokenizer.encode(before, add_special_tokens=False))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def has_control_tokens(self, text: str) -> bool:
        """Whether some text would be read as control tokens: it could open or close turns."""
        return any(token in text for token in self.tokenizer.all_special_tokens)

    def _assistant_span(
        self, whole: list[int], messages: Sequence[Message], turn: int, tools: Tools
    ) -> tuple[int, int]:
        past = self.render(messages[:turn], tools=tools)
        before = self.render(messages[:turn], add_generation_prompt=True, tools=tools)
        start = _in_common(whole, before)
        if start < min(len(past), len(before)):
            raise UsageError(
                f"the chat template renders what comes before turn {turn + 1} (assistant) differently once that turn "
                "is there, so its tokens cannot be found; split the conversation, or set `data.train_on: all`"
            )
        until = self.render(messages[: turn + 1], tools=tools)
        is_stable = whole[: len(until)] == until
        # Unstable where e.g. thoughts are dropped from earlier answers: the turn ends before the next answer's opening.
        limit = len(until) if is_stable else self._next_answer(whole, messages, turn, tools)
        opening = before[_in_common(past, before) :]
        for position in range(start, limit):
            goes_on = opening and whole[position + 1 : position + 1 + len(opening)] == opening
            if whole[position] in self.turn_ends and not (goes_on and position + 1 + len(opening) < limit):
                return start, position + 1
        if not is_stable:
            raise UsageError(f"the chat template does not end turn {turn + 1} (assistant) with a stop token")
        # Some models stop by opening the next turn: its first token is then theirs.
        return start, limit + (limit < len(whole) and whole[limit] in self.stop_ids)

    def _next_answer(self, whole: list[int], messages: Sequence[Message], turn: int, tools: Tools) -> int:
        for later in range(turn + 1, len(messages)):
            if messages[later]["role"] == "assistant":
                opened = self.render(messages[:later], add_generation_prompt=True, tools=tools)
                return _in_common(whole, opened)
        return len(whole)


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same from the beginning."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _render(
    tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool, tools: Tools = ()
) -> list[int]:
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tools=[dict(tool) for tool in tools] or None,
        tokenize=True,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
    )
    return list(ids)


def _stop_ids(tokenizer: Any, directory: Path, turn_ends: Sequence[int]) -> tuple[int, ...]:
    """The tokenizer's and the generation config's ends of sequence, and the template's end of turn."""
    ends: list[int] = list(turn_ends)
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
        ends += found if isinstance(found, list) else [found] if isinstance(found, int) else []
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return tuple(sorted(set(ends)))


def _file_digest(directory: Path) -> str:
    """The digest of tokenizer.json, or of the older files that take its place."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
    files = [directory / name for name in names if (directory / name).is_file()]
    digest = hashlib.sha256()
    for file in files[:1] if files and files[0].name == "tokenizer.json" else files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
