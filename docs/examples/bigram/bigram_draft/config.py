"""The draft's sizes, and how they stand in a checkpoint's config.json; without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigram_draft.shape import Options


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int
    rank: int
    tokens: int
    aux_layers: tuple[int, ...] = (0,)

    @classmethod
    def for_verifier(cls, facts: Any, options: Options, *, draft_vocab_size: int, aux_layers: Sequence[int]) -> Config:
        return cls(vocab_size=facts.vocab_size, rank=options.rank, tokens=options.tokens)

    def to_config_json(self) -> dict[str, Any]:
        return {
            "speculators_model_type": "bigram",
            "transformer_layer_config": {"vocab_size": self.vocab_size, "num_hidden_layers": 0},
            "rank": self.rank,
            "tokens": self.tokens,
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Config:
        size = config["transformer_layer_config"]["vocab_size"]
        return cls(vocab_size=size, rank=config["rank"], tokens=config["tokens"])


def verifier_layers(options: Options, layers: int) -> tuple[int, ...]:
    """The streams that the draft reads. It reads none; the smallest stands for nothing."""
    return (0,)


def trained_parameters(options: Options, facts: Mapping[str, float]) -> float:
    """For the estimate of memory and disk."""
    return 2 * facts["vocab_size"] * options.rank
