"""The recipe's section, field by field as in `schema.json`; without torch."""

from __future__ import annotations

from typing import ClassVar

from speculators.recipe.shapes.common import DraftOptions


class Options(DraftOptions, frozen=True, tag="bigram", tag_field="type"):
    """A table of rank `rank`, from which a round proposes `tokens` tokens."""

    states_read: ClassVar[tuple[str, ...]] = ("algorithm.type",)

    rank: int
    tokens: int

    @property
    def speculative_tokens(self) -> int:
        return self.tokens
