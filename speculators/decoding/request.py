"""What a caller asks of the decoder, and what the decoder answers after each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GREEDY_BELOW = 1e-5
"""A temperature under this is 0: dividing logits by it would overflow float32."""


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    `temperature` 0 is greedy; `top_k` None and `top_p` 1 keep the whole vocabulary. `seed` None draws one from the
    operating system. Generation ends after `max_new_tokens` tokens or with the first token of `stop_ids`, which is
    kept. Stop *texts* are the caller's business: it watches the text and releases the slot. `images` are the files of
    the prompt's images, all of whose tokens are among `prompt_ids`.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    images: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("a request needs at least one prompt token")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or None for no limit")

    @property
    def is_greedy(self) -> bool:
        """Whether the verifier's most likely token is always taken."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True)
class Commit:
    """The tokens that one step added to one request.

    The first `accepted` of `tokens` were proposed by the draft, the one after them (if any) is the verifier's own.
    `proposed` counts the proposals that could be judged: 0 for the token that ends the reading of the prompt, for
    decoding without a draft, and in a round in which the draft trusted none of its tokens or the answer had room for
    one more alone; of a tree it counts the levels that were judged. Proposals after a stop token are neither kept nor
    counted. `finished` commits free their slot by themselves.
    """

    slot: int
    tokens: list[int]
    accepted: int
    proposed: int
    finished: bool
    reason: Literal["stop", "length"] | None
