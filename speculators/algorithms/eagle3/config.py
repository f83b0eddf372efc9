"""The shape of an EAGLE-3 draft, and how it stands in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.recipe.shapes.eagle3 import Eagle3
    from speculators.verifiers.facts import VerifierFacts

_UNSERVED_ROPE_KEYS = ("partial_rotary_factor", "mrope_section", "mrope_interleaved")  # the draft is a plain Llama


@dataclass(frozen=True, kw_only=True)
class Eagle3Config:
    """Everything that decides the draft's parameters and its forward pass.

    `aux_layers` are ids of residual streams *entering* a verifier layer; `rope` has the form of transformers 5's
    `rope_parameters`. `norm_*` and `fc_norm` are the checkpoint format's names for the recipe's `normalization`.
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
    def aux_width(self) -> int:
        """Width of the verifier's features: its streams side by side."""
        return len(self.aux_layers) * self.hidden_size

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
            hidden_size=facts.hidden_size,
            intermediate_size=facts.intermediate_size,
            attention_heads=facts.attention_heads,
            key_value_heads=facts.key_value_heads,
            head_dim=facts.head_dim,
            vocab_size=facts.vocab_size,
            draft_vocab_size=draft_vocab_size,
            aux_layers=tuple(aux_layers),
            rope={key: value for key, value in facts.rope.items() if key not in _UNSERVED_ROPE_KEYS},
            rms_norm_eps=facts.rms_norm_eps,
            max_position_embeddings=facts.max_position_embeddings,
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
            "target_hidden_size": None,
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any]) -> Eagle3Config:
        """The shape of a draft from its config.json; keys that older checkpoints lack mean what vLLM takes them to.

        Raises UsageError when a key is missing that nothing can stand in for.
        """
        try:
            layer = config["transformer_layer_config"]
            hidden, heads = layer["hidden_size"], layer["num_attention_heads"]
            rope = dict(layer.get("rope_parameters") or layer.get("rope_scaling") or {})
            rope.setdefault("rope_type", rope.pop("type", "default"))
            rope.setdefault("rope_theta", float(layer.get("rope_theta") or 10000.0))
            if config.get("target_hidden_size") not in (None, hidden):
                raise UsageError("a draft narrower or wider than its verifier (`target_hidden_size`) is not supported")
            return cls(
                hidden_size=hidden,
                intermediate_size=layer["intermediate_size"],
                attention_heads=heads,
                key_value_heads=layer.get("num_key_value_heads") or heads,
                head_dim=layer.get("head_dim") or hidden // heads,
                vocab_size=layer["vocab_size"],
                draft_vocab_size=config.get("draft_vocab_size") or layer["vocab_size"],
                aux_layers=tuple(config["eagle_aux_hidden_state_layer_ids"]),
                rope=rope,
                rms_norm_eps=layer["rms_norm_eps"],
                max_position_embeddings=layer.get("max_position_embeddings") or 2048,
                layers=layer.get("num_hidden_layers") or 1,
                hidden_act=layer.get("hidden_act") or "silu",
                norm_before_residual=config.get("norm_before_residual", True),
                norm_before_fc=config.get("norm_before_fc", False),
                fc_norm=config.get("fc_norm", False),
                norm_output=config.get("norm_output", False),
                embed_requires_grad=config.get("embed_requires_grad", False),
            )
        except KeyError as error:
            raise UsageError(f"config.json of the draft has no key {error}") from error
