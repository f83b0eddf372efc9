"""The shape of a draft of heads made of residual blocks, and how it stands in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from speculators.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.verifiers.facts import VerifierFacts


class BlockOptions(Protocol):
    """What a recipe's section says of the shape."""

    @property
    def heads(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def shared_head(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class BlockHeadsConfig:
    """Everything that decides the parameters of `heads` heads, each of `layers` blocks and an output layer.

    `shared_head`: there is one output layer for all. `verifier_layers` is how deep the verifier is: the id of the
    stream before its final norm, the only one that heads read.
    """

    kind: ClassVar[str]
    architecture: ClassVar[str]

    hidden_size: int
    vocab_size: int
    draft_vocab_size: int
    verifier_layers: int
    heads: int
    layers: int = 1
    shared_head: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.layers < 1:
            raise UsageError("a draft of heads needs at least one head, and one block in each")
        if self.draft_vocab_size > self.vocab_size:
            raise UsageError(
                f"`draft_vocab_size` is {self.draft_vocab_size}, more than the verifier's {self.vocab_size} tokens"
            )

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The stream before the verifier's final norm. Training has it as `last` and asks for no others."""
        return (self.verifier_layers,)

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: BlockOptions, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> Self:
        """The draft that a recipe's `algorithm` section asks for; `draft_vocab_size` as it really is."""
        return cls(
            hidden_size=facts.hidden_size,
            vocab_size=facts.vocab_size,
            draft_vocab_size=draft_vocab_size,
            verifier_layers=facts.layers,
            heads=options.heads,
            layers=options.layers,
            shared_head=options.shared_head,
        )

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json. It has no decoder: `transformer_layer_config` holds the sizes alone."""
        return {
            "architectures": [self.architecture],
            "speculators_model_type": self.kind,
            "transformer_layer_config": {
                "model_type": self.kind,
                "hidden_size": self.hidden_size,
                "num_hidden_layers": self.layers,
                "vocab_size": self.vocab_size,
            },
            "draft_vocab_size": self.draft_vocab_size,
            "num_heads": self.heads,
            "shared_head": self.shared_head,
            "aux_hidden_state_layer_ids": [self.verifier_layers],
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Self:
        """The shape of a draft from its config.json; raises UsageError when a key is missing."""
        try:
            layer = config["transformer_layer_config"]
            (deepest,) = config["aux_hidden_state_layer_ids"]
            return cls(
                hidden_size=layer["hidden_size"],
                vocab_size=layer["vocab_size"],
                draft_vocab_size=config["draft_vocab_size"],
                verifier_layers=deepest,
                heads=config["num_heads"],
                layers=layer["num_hidden_layers"],
                shared_head=config["shared_head"],
            )
        except KeyError as error:
            raise UsageError(f"config.json of the draft has no key {error}") from error
