"""What every recipe shape has in common: frozen, keyword-only, strict, and without defaults.

Defaults, units and descriptions live in `schemas/` alone; a test proves that shapes and schemas have the same fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import msgspec

from speculators.recipe.finding import Finding

Dtype = Literal["float32", "bfloat16", "float16"]


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all recipe shapes."""


class DraftOptions(Shape, frozen=True):
    """Base of every algorithm's section: what the rest of the program asks of it, whatever options it has.

    Options named `aux_layers`, `draft_vocab_size` and `mask_token_id` mean the same in every algorithm that has them.
    """

    states_read: ClassVar[tuple[str, ...]] = ("algorithm.aux_layers",)
    """Recipe paths that decide which of the verifier's layers are read, for the key of the stored hidden states.

    An algorithm whose layers are not EAGLE-3's three by default has "algorithm.type" among them.
    """

    fewest_layers: ClassVar[int] = 7
    """The verifier must have as many for `aux_layers: auto`."""

    drafts_trees: ClassVar[bool] = False
    """Whether its proposal makes trees as well as chains (`eval.acceptance.tree`)."""

    @property
    def foretells_acceptance(self) -> bool:
        """Whether its proposal may end where it trusts its tokens no more (`eval.acceptance.least_confidence`)."""
        return False

    @property
    def name(self) -> str:
        """The `type` in a recipe."""
        return str(self.__struct_config__.tag)

    @property
    def speculative_tokens(self) -> int:
        """Tokens that a round proposes when the recipe names no number."""
        raise NotImplementedError

    @property
    def training_passes(self) -> int:
        """Times that training computes the draft for a token, at most; estimates of time rest on it."""
        return self.speculative_tokens

    @property
    def chains_per_document(self) -> int | None:
        """More than these are not trained at a time; None: all that begin in its answers."""
        return None

    @property
    def most_speculative_tokens(self) -> int | None:
        """More than these a round cannot propose; None: as many as are wanted."""
        return None

    @property
    def train_version(self) -> int:
        """Version of the train step: raised when training by the same options would give another draft."""
        return 1

    def findings(self) -> Iterator[Finding]:
        """What is wrong between the options, which a schema cannot say."""
        return iter(())
