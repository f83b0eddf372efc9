"""Tokens in, readable text out: never half a character, and nothing at or after a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes that are not a whole character yet."""

MOST_HELD_TOKENS = 8
"""A character takes at most four bytes, a token at least one: after this many the bytes are no character at all."""


class TextStream:
    """The text of one answer as its tokens arrive.

    `decode` turns token ids into text, special tokens left out. Text that may be the start of a stop text is held back
    until it is clear.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        self._shown_tokens = 0
        self._context = 0
        self._pending = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with this token; `is_stopped` says whether a stop text was reached."""
        self._tokens.append(token)
        # Decoding the last shown tokens together with the new ones keeps the spaces that a tokenizer puts between them.
        before = self._decode(self._tokens[self._context : self._shown_tokens])
        now = self._decode(self._tokens[self._context :])
        if now.endswith(UNFINISHED) and len(self._tokens) - self._shown_tokens < MOST_HELD_TOKENS:
            return ""
        self._context, self._shown_tokens = self._shown_tokens, len(self._tokens)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """What was held back, when the answer has ended without a stop text."""
        rest = ""
        if not self.is_stopped and self._shown_tokens < len(self._tokens):
            before = self._decode(self._tokens[self._context : self._shown_tokens])
            rest = self._release(self._decode(self._tokens[self._context :])[len(before) :])
        if self.is_stopped:
            return rest
        rest, self._pending = rest + self._pending, ""
        return rest

    def _release(self, text: str) -> str:
        self._pending += text
        ends = [end for stop in self._stop if (end := self._pending.find(stop)) >= 0]
        if ends:
            self.is_stopped = True
            shown, self._pending = self._pending[: min(ends)], ""
            return shown
        cut = len(self._pending) - max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        shown, self._pending = self._pending[:cut], self._pending[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
