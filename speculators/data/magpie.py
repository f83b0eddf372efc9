"""Prompts that the verifier invents itself: given only the opening of a user's turn, it writes the user's message.

Magpie (Xu et al. 2024, arXiv:2406.08464). A draw is kept when it reads as a message somebody could have sent: it ended
by itself, has a sensible length, no control tokens, and was not seen before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from speculators.data.conversations import normalized

MIN_CHARACTERS, MAX_CHARACTERS = 8, 4000
ATTEMPTS_PER_SAMPLE = 3
"""So many draws are made for every prompt that is wanted, at most."""
SHARD_DRAWS = 512
"""What a killed run loses at most."""


@dataclass(frozen=True)
class Draw:
    """One message as it came from the verifier; `reason` says what ended it."""

    number: int
    text: str
    reason: Literal["stop", "length"]


def draw_seed(seed: int, source: int, number: int) -> int:
    """The seed of one draw: 63 bits from the recipe's seed, the source's place in the recipe and the draw's number."""
    digest = hashlib.sha256(f"magpie/{seed}/{source}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def kept_draws(draws: Iterable[Draw], *, avoid: Iterable[str], samples: int) -> list[Draw]:
    """The first `samples` draws worth keeping; `avoid` are texts that must not come again, as held-out prompts are."""
    seen = {normalized(text) for text in avoid}
    kept: list[Draw] = []
    for draw in draws:
        text = normalized(draw.text)
        if is_message(draw) and text not in seen and len(kept) < samples:
            seen.add(text)
            kept.append(draw)
    return kept


def is_message(draw: Draw) -> bool:
    """Whether a draw ended by itself, is neither a scrap nor a flood, and contains no control token's name."""
    text = draw.text.strip()
    has_words = any(character.isalpha() for character in text)
    is_clean = "<|" not in text and "\x00" not in text and "\N{REPLACEMENT CHARACTER}" not in text
    return draw.reason == "stop" and MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and has_words and is_clean


def next_draws(*, made: int, kept: int, samples: int) -> int:
    """How many to draw next: a little more than is missing, in shards, within the attempts; 0 ends it."""
    missing = samples - kept
    if missing <= 0:
        return 0
    share = max(kept / made, 1 / ATTEMPTS_PER_SAMPLE) if made else 1.0
    return min(math.ceil(missing / share) + 4, SHARD_DRAWS, ATTEMPTS_PER_SAMPLE * samples - made)
