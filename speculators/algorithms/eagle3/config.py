"""The shape of an EAGLE-3 draft, and how it stands in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speculators.algorithms.decoder_layout import verifier_sizes, written_sizes
from speculators.errors import UsageError
from speculators.verifiers.layer_ids import auto_layers, resolve_layers

if TYPE_CHECKING:
    from speculators.recipe.shapes.eagle3 import Eagle3
    from speculators.verifiers.facts import VerifierFacts


@dataclass(frozen=True, kw_only=True)
class Eagle3Config:
    """Everything that decides the draft's parameters and its forward pass.

    `aux_layers` are ids of residual streams *entering* a verifier layer; `rope` has the form of transformers 5's
    `rope_parameters`. `norm_*` and `fc_norm` are the checkpoint format's names for the recipe's `normalization`.
    `target_hidden_size` is the width of the verifier's streams where it is not the draft's own (null: it is).
    """

    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    aux_layers: tuple[int, ...]
    rope: Mapping[str, Any]
    rms_norm_eps: float
    max_position_embeddings: int
    layers: int = 1
    hidden_act: str = "silu"
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    embed_requires_grad: bool = False
    target_hidden_size: int | None = None

    def __post_init__(self) -> None:
        if self.hidden_act != "silu":
            raise UsageError(f"an EAGLE-3 draft's activation is silu, not {self.hidden_act!r}")
        if not self.aux_layers or self.layers < 1:
            raise UsageError("an EAGLE-3 draft needs at least one layer of its own and one of the verifier's streams")
        if self.draft_vocab_size > self.vocab_size:
            raise UsageError(
                f"`draft_vocab_size` is {self.draft_vocab_size}, more than the verifier's {self.vocab_size} tokens"
            )

    @property
    def stream_width(self) -> int:
        """Width of one of the verifier's streams."""
        return self.target_hidden_size or self.hidden_size

    @property
    def aux_width(self) -> int:
        """Width of the verifier's features: its streams side by side."""
        return len(self.aux_layers) * self.stream_width

    @property
    def has_vocabulary_map(self) -> bool:
        """Whether draft ids differ from verifier ids, so that `d2t` and `t2d` exist."""
        return self.draft_vocab_size != self.vocab_size

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: Eagle3, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> Eagle3Config:
        """The draft that a recipe's `algorithm` section asks for: layers like the verifier's own, but of Llama's kind.

        `draft_vocab_size` and `aux_layers` are what the artifacts really have ("auto" and null resolved).
        """
        norms = options.normalization
        return cls(
            **verifier_sizes(facts),
            draft_vocab_size=draft_vocab_size,
            aux_layers=tuple(aux_layers),
            layers=options.layers,
            norm_before_residual=norms.before_residual,
            norm_before_fc=norms.before_fc,
            fc_norm=norms.per_aux_layer,
            norm_output=norms.output,
            embed_requires_grad=options.train_embeddings,
        )

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json; `speculators_config`, version and dtype are the checkpoint writer's.

        Every key is written, because readers differ in what an absent one means.
        """
        rope = dict(self.rope)
        return {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "transformer_layer_config": {
                "model_type": "llama",
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.layers,
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
                # vLLM sizes `fc` for three streams unless it finds their number here.
                "num_aux_hidden_states": len(self.aux_layers),
            },
            "draft_vocab_size": self.draft_vocab_size,
            "norm_before_residual": self.norm_before_residual,
            "norm_before_fc": self.norm_before_fc,
            "fc_norm": self.fc_norm,
            "norm_output": self.norm_output,
            "embed_requires_grad": self.embed_requires_grad,
            "eagle_aux_hidden_state_layer_ids": list(self.aux_layers),
            "target_hidden_size": self.target_hidden_size,
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_config_json(
        cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None
    ) -> Eagle3Config:
        """The shape of a draft from its config.json; keys that older checkpoints lack mean what vLLM takes them to.

        Layers that are not listed are those of "auto", from the number that `verifier_layers` gives. Raises UsageError
        when a key is missing that nothing can stand in for.
        """
        return cls(**written_fields(config, verifier_layers, norm_before_residual=True))


Config = Eagle3Config


def verifier_layers(options: Eagle3, layers: int) -> tuple[int, ...]:
    """Ids of the streams that the draft of a recipe reads of a verifier with so many layers."""
    return resolve_layers(options.aux_layers, layers)


def trained_parameters(options: Eagle3, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, embeddings left out, from the verifier's sizes."""
    hidden, vocabulary = facts["hidden_size"], facts["vocab_size"]
    layer = (11 * hidden + 3 * facts.get("intermediate_size", 4 * hidden)) * hidden * options.layers
    return layer + (options.draft_vocab_size or vocabulary) * hidden


def written_fields(
    config: Mapping[str, Any], verifier_layers: Callable[[], int] | None, *, norm_before_residual: bool
) -> dict[str, Any]:
    """The fields that a config.json says; `norm_before_residual` is what its absence means."""
    try:
        layer = config["transformer_layer_config"]
        return {
            **written_sizes(config, default_theta=10000.0),
            "draft_vocab_size": config.get("draft_vocab_size") or layer["vocab_size"],
            "aux_layers": _listed(config, verifier_layers),
            "layers": layer.get("num_hidden_layers") or 1,
            "hidden_act": layer.get("hidden_act") or "silu",
            "norm_before_residual": config.get("norm_before_residual", norm_before_residual),
            "norm_before_fc": config.get("norm_before_fc", False),
            "fc_norm": config.get("fc_norm", False),
            "norm_output": config.get("norm_output", False),
            "embed_requires_grad": config.get("embed_requires_grad", False),
            "target_hidden_size": config.get("target_hidden_size"),
        }
    except KeyError as error:
        raise UsageError(f"config.json of the draft has no key {error}") from error


def _listed(config: Mapping[str, Any], verifier_layers: Callable[[], int] | None) -> tuple[int, ...]:
    ids = config.get("eagle_aux_hidden_state_layer_ids")
    if not ids and verifier_layers is not None:
        return auto_layers(verifier_layers())
    return tuple(config["eagle_aux_hidden_state_layer_ids"])
