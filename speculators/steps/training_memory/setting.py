"""What a training's memory depends on, as planning knows it: a decoder layer's sizes, the heaviest batch, the recipe.

Sizes are elements unless a name says bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from speculators.recipe.shapes.train import AdamW8bit, Muon, Train
from speculators.verifiers.latent import Latent
from speculators.verifiers.mixture import Mixture

_Sizes = TypeVar("_Sizes", Mixture, Latent)

FLOAT = 4
"""Bytes of an element of weights, gradients and the residual stream."""
PLAIN_SCORES = PART_SCORES = BLOCK_SCORES = 1 << 25
GPU_PART_SCORES = 1 << 27
"""Those of `layers/attention.py` and `layers/block_attention.py`, which planning cannot import; a test holds them."""


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """A decoder layer's widths."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together."""
        return self.key_value_heads * self.head_dim

    @property
    def mlp(self) -> int:
        """Parameters of a gated MLP."""
        return 3 * self.hidden * self.intermediate

    def attention(self, inputs: int | None = None) -> int:
        """Parameters of the projections of attention, which read `inputs` channels (None: the hidden size)."""
        read = self.hidden if inputs is None else inputs
        return read * (self.queries + 2 * self.keys) + self.queries * self.hidden


@dataclass(frozen=True)
class Load:
    """The heaviest batch: tokens, chains, and `scores`, the sum over its documents of chains times tokens.

    `longest` is the largest of these products; `answers` are the tokens that chains could begin at or predict.
    """

    tokens: float
    chains: float
    scores: float
    longest: float
    answers: float


@dataclass(frozen=True)
class Setting:
    """`product` and `state` are bytes of an element of products and of stored states."""

    vocabulary: int
    layer: LayerSizes
    load: Load
    train: Train
    product: int
    state: int
    on_gpu: bool
    is_tied: bool
    """Whether the verifier's head is its embedding."""
    mixture: Mixture | None
    latent: Latent | None

    @classmethod
    def of(
        cls, train: Train, facts: Mapping[str, float], *, product: int, on_gpu: bool, most_chains: int | None
    ) -> Setting:
        """From what is known while planning; `most_chains` are those of a document, None for all.

        Before there are tokens, a batch counts as documents that are answers from beginning to end: a single one, or
        as many as they have to be if each has `most_chains` alone.
        """
        layer = LayerSizes(
            hidden=int(facts["hidden_size"]),
            intermediate=int(facts["intermediate_size"]),
            heads=int(facts["attention_heads"]),
            key_value_heads=int(facts["key_value_heads"]),
            head_dim=int(facts["head_dim"]),
        )
        return cls(
            vocabulary=int(facts["vocab_size"]),
            layer=layer,
            load=_load(facts, train.tokens_per_step, most_chains),
            train=train,
            product=product,
            state=int(facts.get("state_bytes", 2)),
            on_gpu=on_gpu,
            is_tied=bool(facts.get("tie_word_embeddings", 0)),
            mixture=_sizes(Mixture, "mixture_", facts),
            latent=_sizes(Latent, "latent_", facts),
        )

    @property
    def is_rounded(self) -> bool:
        """Whether weights and inputs of products are rounded, so that there are two of each."""
        return self.product < FLOAT

    @property
    def embedding(self) -> int:
        """Elements of the verifier's embedding, and of its head."""
        return self.vocabulary * self.layer.hidden

    def moments(self, hidden: float, tables: float) -> float:
        """Bytes of the optimizer's running means: of hidden matrices, and of look-up tables and output layers."""
        if isinstance(self.train.optimizer, Muon):
            return FLOAT * (hidden + 2 * tables)
        each = 1 + FLOAT / 256 if isinstance(self.train.optimizer, AdamW8bit) else FLOAT
        return 2 * each * (hidden + tables)

    def batch(self, streams: int) -> float:
        """Bytes of a batch with so many of the verifier's streams beside the last one."""
        beside = 8 + 8 + 1  # a token's id, the verifier's choice, the loss mask
        return self.load.tokens * (self.state * (streams + 1) * self.layer.hidden + beside)


def _sizes(kind: type[_Sizes], prefix: str, facts: Mapping[str, float]) -> _Sizes | None:
    """What planning knows of the verifier's experts or latent attention, None where it has none."""
    found: dict[str, Any] = {
        name.removeprefix(prefix): int(size) for name, size in facts.items() if name.startswith(prefix)
    }
    return kind(**found) if found else None


def _load(facts: Mapping[str, float], budget: int, most_chains: int | None) -> Load:
    tokens = facts.get("batch_tokens", float(budget))
    if "batch_chains" in facts:
        chains, scores, longest = (facts[f"batch_{name}"] for name in ("chains", "scores", "longest"))
        return Load(tokens, max(1.0, chains), scores, longest, max(1.0, facts.get("batch_answers", chains)))
    if most_chains is None:
        return Load(tokens, tokens, tokens * tokens, tokens * tokens, tokens)
    length = facts["tokens"] / facts["documents"] if facts.get("tokens") and facts.get("documents") else tokens
    length = max(1.0, min(length, tokens))
    each = min(length, most_chains)
    return Load(tokens, tokens / length * each, tokens * each, length * each, tokens)
