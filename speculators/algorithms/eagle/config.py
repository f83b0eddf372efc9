"""The shape of an EAGLE-1 draft, and how it stands in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speculators.algorithms.decoder_layout import verifier_sizes, written_sizes
from speculators.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.recipe.shapes.eagle import FeatureDraft
    from speculators.verifiers.facts import VerifierFacts


@dataclass(frozen=True, kw_only=True)
class EagleConfig:
    """Everything that decides the draft's parameters and its forward pass.

    `verifier_layers` is how many layers the verifier has: the draft reads the stream after the last one. `rope` has the
    form of transformers 5's `rope_parameters`.
    """

    ALGORITHM: ClassVar[str] = "eagle"
    ARCHITECTURE: ClassVar[str] = "EagleDraftModel"

    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    verifier_layers: int
    rope: Mapping[str, Any]
    rms_norm_eps: float
    max_position_embeddings: int
    hidden_act: str = "silu"
    fc_bias: bool = False

    def __post_init__(self) -> None:
        if self.hidden_act != "silu":
            raise UsageError(f"the activation of a draft of type {self.ALGORITHM} is silu, not {self.hidden_act!r}")

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The stream before the verifier's final norm; the network norms it itself."""
        return (self.verifier_layers,)

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: FeatureDraft, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> Self:
        """The draft that a recipe's `algorithm` section asks for: a layer like the verifier's own, of Llama's kind."""
        return cls(**verifier_sizes(facts), verifier_layers=facts.layers, fc_bias=options.fc_bias)

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json; `speculators_config`, version and dtype are the checkpoint writer's."""
        rope = dict(self.rope)
        return {
            "architectures": [self.ARCHITECTURE],
            "speculators_model_type": self.ALGORITHM,
            "transformer_layer_config": {
                "model_type": "llama",
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": 1,
                "num_attention_heads": self.attention_heads,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": self.head_dim,
                "vocab_size": self.vocab_size,
                "hidden_act": self.hidden_act,
                "rms_norm_eps": self.rms_norm_eps,
                "rope_parameters": rope,
                "rope_theta": rope.get("rope_theta", 10000.0),
                "max_position_embeddings": self.max_position_embeddings,
                "attention_bias": False,
                "mlp_bias": False,
                "tie_word_embeddings": False,
            },
            "draft_vocab_size": self.vocab_size,
            "fc_bias": self.fc_bias,
            "eagle_aux_hidden_state_layer_ids": [self.verifier_layers],
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Self:
        """The shape of a draft from its config.json.

        A verifier's depth that is not written is the number that `verifier_layers` gives. Raises UsageError when a key
        is missing that nothing can stand in for.
        """
        try:
            return cls(
                **written_sizes(config, 10000.0),
                verifier_layers=_depth(config, verifier_layers),
                hidden_act=config["transformer_layer_config"].get("hidden_act") or "silu",
                fc_bias=config.get("fc_bias", False),
            )
        except KeyError as error:
            raise UsageError(f"config.json of the draft has no key {error}") from error


Config = EagleConfig


def verifier_layers(options: FeatureDraft, layers: int) -> tuple[int, ...]:
    """No stream but the last one, which is stored for every draft."""
    return ()


def trained_parameters(options: FeatureDraft, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, embeddings left out, from the verifier's sizes."""
    hidden = facts["hidden_size"]
    return (6 * hidden + 3 * facts.get("intermediate_size", 4 * hidden)) * hidden


def _depth(config: Mapping[str, Any], verifier_layers: Callable[[], int] | None) -> int:
    ids = config.get("eagle_aux_hidden_state_layer_ids")
    if not ids and verifier_layers is not None:
        return verifier_layers()
    return int(config["eagle_aux_hidden_state_layer_ids"][-1])
