"""The shape of an MLP speculator, and how it stands in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.recipe.shapes.mlp_speculator import MLPSpeculator
    from speculators.verifiers.facts import VerifierFacts


@dataclass(frozen=True, kw_only=True)
class MLPSpeculatorConfig:
    """Everything that decides the draft's parameters and its forward pass.

    `inner_size` is the width of its own state. `tie_weights`: all steps have the same weights, but for the first
    projection. `scale_input`: the verifier's state is brought to a root mean square of one half's root first.
    """

    hidden_size: int
    inner_size: int
    vocab_size: int
    verifier_layers: int
    heads: int
    tie_weights: bool
    scale_input: bool

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise UsageError("an MLP speculator needs at least one head")
        if self.tie_weights and self.heads == 1:
            raise UsageError("an MLP speculator with one head has no weights to tie")

    @property
    def draft_vocab_size(self) -> int:
        """It always proposes from the verifier's whole vocabulary."""
        return self.vocab_size

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The stream before the verifier's final norm. Training has it as `last` and asks for no others."""
        return (self.verifier_layers,)

    @property
    def state_weight(self) -> float:
        """How much of the state is kept in a step: half of its power is left after all of them."""
        return float(0.5 ** (0.5 / self.heads))

    @property
    def token_weight(self) -> float:
        """What an embedding of variance 1/inner_size is multiplied with, to have the power that the state loses."""
        return float(((1 - self.state_weight**2) * self.inner_size / 2) ** 0.5)

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: MLPSpeculator, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> MLPSpeculatorConfig:
        """The draft that a recipe's `algorithm` section asks for."""
        return cls(
            hidden_size=facts.hidden_size,
            inner_size=options.inner_size or facts.hidden_size,
            vocab_size=facts.vocab_size,
            verifier_layers=facts.layers,
            heads=options.heads,
            tie_weights=options.tie_weights,
            scale_input=options.scale_input,
        )

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json. It has no decoder: `transformer_layer_config` holds the sizes alone."""
        return {
            "architectures": ["MLPSpeculatorDraftModel"],
            "speculators_model_type": "mlp_speculator",
            "transformer_layer_config": {
                "model_type": "mlp_speculator",
                "hidden_size": self.hidden_size,
                "intermediate_size": self.inner_size,
                "vocab_size": self.vocab_size,
            },
            "draft_vocab_size": self.vocab_size,
            "num_heads": self.heads,
            "tie_weights": self.tie_weights,
            "scale_input": self.scale_input,
            "aux_hidden_state_layer_ids": [self.verifier_layers],
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_config_json(
        cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None
    ) -> MLPSpeculatorConfig:
        """The shape of a draft from its config.json; raises UsageError when a key is missing."""
        try:
            layer = config["transformer_layer_config"]
            (deepest,) = config["aux_hidden_state_layer_ids"]
            return cls(
                hidden_size=layer["hidden_size"],
                inner_size=layer["intermediate_size"],
                vocab_size=layer["vocab_size"],
                verifier_layers=deepest,
                heads=config["num_heads"],
                tie_weights=config["tie_weights"],
                scale_input=config["scale_input"],
            )
        except KeyError as error:
            raise UsageError(f"config.json of the draft has no key {error}") from error


Config = MLPSpeculatorConfig


def verifier_layers(options: MLPSpeculator, layers: int) -> tuple[int, ...]:
    """Training reads none but the last state, which is always there."""
    return ()


def trained_parameters(options: MLPSpeculator, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    inner, steps = options.inner_size or facts["hidden_size"], 1 if options.tie_weights else options.heads
    projections = facts["hidden_size"] * inner + (1 if options.tie_weights else options.heads - 1) * inner * inner
    return projections + steps * (2 * facts["vocab_size"] * inner + 2 * inner)
