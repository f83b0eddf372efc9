"""The shape of a P-EAGLE draft: EAGLE-3's, and the token that stands for those not known yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speculators.algorithms.decoder_layout import verifier_sizes
from speculators.algorithms.eagle3.config import Eagle3Config, written_fields
from speculators.errors import UsageError
from speculators.verifiers.layer_ids import resolve_layers

if TYPE_CHECKING:
    from speculators.recipe.shapes.peagle import PEagle
    from speculators.verifiers.facts import VerifierFacts


@dataclass(frozen=True, kw_only=True)
class PEagleConfig(Eagle3Config):
    """Everything that decides the draft's parameters and its forward pass; `mask_token_id` is a verifier id."""

    mask_token_id: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise UsageError(f"`mask_token_id` is {self.mask_token_id}, the verifier has {self.vocab_size} tokens")

    @classmethod
    def for_verifier(  # type: ignore[override]
        cls, facts: VerifierFacts, options: PEagle, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> PEagleConfig:
        """The draft that a recipe's `algorithm` section asks for."""
        mask = options.mask_token_id
        return cls(
            **verifier_sizes(facts),
            draft_vocab_size=draft_vocab_size,
            aux_layers=tuple(aux_layers),
            layers=options.layers,
            norm_before_residual=options.normalization.before_residual,
            norm_before_fc=options.normalization.before_fc,
            embed_requires_grad=options.train_embeddings,
            mask_token_id=facts.vocab_size - 1 if mask is None else mask,
        )

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json."""
        return {
            **super().to_config_json(),
            "architectures": ["PEagleDraftModel"],
            "speculators_model_type": "peagle",
            "mask_token_id": self.mask_token_id,
        }

    @classmethod
    def from_config_json(
        cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None
    ) -> PEagleConfig:
        """The shape of a draft from its config.json; absent keys mean what vLLM takes them to."""
        if "mask_token_id" not in config:
            raise UsageError("config.json of the draft has no key 'mask_token_id'")
        fields = written_fields(config, verifier_layers, norm_before_residual=False)
        return cls(**fields, mask_token_id=config["mask_token_id"])


Config = PEagleConfig


def verifier_layers(options: PEagle, layers: int) -> tuple[int, ...]:
    """Ids of the streams that the draft of a recipe reads of a verifier with so many layers."""
    return resolve_layers(options.aux_layers, layers)


def trained_parameters(options: PEagle, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    hidden, vocabulary = facts["hidden_size"], facts["vocab_size"]
    layer = (11 * hidden + 3 * facts.get("intermediate_size", 4 * hidden)) * hidden * options.layers
    embeddings = vocabulary * hidden if options.train_embeddings else 0
    return layer + embeddings + (options.draft_vocab_size or vocabulary) * hidden
