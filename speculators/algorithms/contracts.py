"""What planning and checkpoints need of an algorithm, without torch: its draft's config, and its layout on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from speculators.verifiers.facts import VerifierFacts


class DraftConfig(Protocol):
    """Everything that decides a draft's parameters: `Config` in `algorithms/<name>/config.py`, a frozen dataclass."""

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Ids of the verifier's streams that the draft reads."""

    @property
    def vocab_size(self) -> int:
        """Tokens of the verifier."""

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: Any, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> DraftConfig:
        """The draft that a recipe's section asks for; the last two are what the artifacts really have."""

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of a checkpoint's config.json."""

    @classmethod
    def from_config_json(
        cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None
    ) -> DraftConfig:
        """Back from there, from what `layout.completed` gives; `verifier_layers` counts them where that is needed."""


class Layout(Protocol):
    """How an algorithm's drafts stand on disk: what the module `algorithms/<name>/layout.py` has.

    Where vLLM loads only some of them, it also has `refuses(config)`: what is said of those that it does not load,
    such as "with a Markov head of the type rnn", and None of the others. Where some tensors are never rounded to the
    type of the checkpoint, it has their names, `UNROUNDED`. Where vLLM loads them in a form of its own (exported, or
    stitched into the verifier), it has the name of vLLM's method, `VLLM_METHOD`.
    """

    ARCHITECTURE: str
    """`architectures` in config.json."""
    IS_SERVED: bool
    """Whether vLLM loads a checkpoint of this kind."""

    def completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with every key that older checkpoints lack; nothing is changed.

        Raises UsageError when something is missing that has no default.
        """

    def written(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The draft's part of config.json as it is written: with every key that any reader looks for."""

    def tensors(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, for a `completed` config."""

    def problems(self, config: Mapping[str, Any], layer: Mapping[str, Any]) -> list[str]:
        """What vLLM would refuse, or read otherwise than it was meant; `layer` is its `transformer_layer_config`."""
