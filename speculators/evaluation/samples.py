"""A few answers as text, token by token, with the draft's tokens marked: what the report colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from speculators.evaluation.acceptance import Answer

_INCOMPLETE = "\ufffd"


def sample(prompt: str, answer: Answer, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    """`{prompt, pieces: [{text, accepted}]}`, one piece a token; `decode` turns token ids into text.

    A token that ends inside a character has an empty text, and the one that completes it has the whole.
    """
    pieces, shown = [], ""
    for count, accepted in enumerate(answer.accepted, 1):
        whole = decode(answer.tokens[:count])
        text = "" if whole.endswith(_INCOMPLETE) and count < len(answer.tokens) else whole[len(shown) :]
        shown += text
        pieces.append({"text": text, "accepted": accepted})
    return {"prompt": prompt, "pieces": pieces}


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` numbers, at even distances."""
    return [number * count // wanted for number in range(min(wanted, count))] if count > wanted else list(range(count))
