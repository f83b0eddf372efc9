"""Text from tokens: whole characters only, and nothing at or after a stop text."""

from __future__ import annotations

import pytest

from speculators.engines.text_stream import TextStream


def decode(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def shown(text: str, stop=()) -> list[str]:
    stream, pieces = TextStream(decode, stop), []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.is_stopped:
            return pieces
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語", "🙂 and 🙃", ""])
def test_pieces_make_up_the_text_and_hold_no_half_character(text):
    pieces = shown(text)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_shown_in_the_end():
    stream = TextStream(decode)
    pieces = [stream.push(0xC3), stream.finish()]
    assert "".join(pieces) == "\ufffd"


def test_a_stop_text_across_tokens_is_cut_off_and_what_only_looked_like_it_is_not():
    assert "".join(shown("one END two", ["END"])) == "one "
    assert "".join(shown("one EN two", ["END"])) == "one EN two"
    assert "".join(shown("one EN", ["END"])) == "one EN"
    assert "".join(shown("abab abc rest", ["abc", "zzz"])) == "abab "


def test_text_that_cannot_start_a_stop_text_is_shown_at_once():
    assert shown("xy", ["END"])[:2] == ["x", "y"]
