"""The shape of an independent draft: a causal model as transformers has it, told from its own config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speculators.algorithms.decoder_layout import verifier_sizes
from speculators.algorithms.draft_model.source import ModelSource
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

if TYPE_CHECKING:
    from speculators.recipe.shapes.draft_model import DraftModel, RandomDraft

TEXT_ONLY = "a model of its own does not see the verifier's images"

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""The families whose layers are those of `layers/decoder.py`, with transformers' and vLLM's class of each."""

_ROPES = ("default", "linear", "llama3", "yarn")
_QWEN3_HEAD_DIM = 128  # transformers' own, where a config does not say


@dataclass(frozen=True, kw_only=True)
class DraftModelConfig:
    """Everything that decides the model's parameters and its forward pass.

    `rope` has the form of transformers 5's `rope_parameters`. `attention_bias` and `mlp_bias` are the config's keys of
    these names; what they mean depends on the family. `source` is the model whose weights a training begins with, None
    for random ones; it is in no checkpoint.
    """

    model_type: str
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    rope: Mapping[str, Any]
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    source: ModelSource | None = field(default=None, compare=False)

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """None of the verifier's streams: it reads the text."""
        return ()

    @property
    def input_biases(self) -> bool:
        """Whether query, key and value projections have biases: in Qwen2 always, in Mistral never."""
        return self.model_type == "qwen2" or self.output_bias

    @property
    def output_bias(self) -> bool:
        """Whether attention's last projection has one."""
        return self.attention_bias and self.model_type in ("llama", "qwen3")

    @property
    def mlp_biases(self) -> bool:
        """Whether the MLP has them."""
        return self.mlp_bias and self.model_type == "llama"

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys are normed head by head."""
        return self.model_type == "qwen3"

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: DraftModel, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> DraftModelConfig:
        """The model that the recipe names, or one of random weights.

        Raises UsageError for one that is not of the families here, or has another vocabulary than the verifier.
        """
        if options.random is not None:
            return cls._random(facts, options.random)
        source = ModelSource.of(str(options.model), options.revision)
        return cls.of_model(source.config(), source.name, facts.vocab_size, source)

    @classmethod
    def of_model(
        cls, config: Mapping[str, Any], name: str, vocab_size: int, source: ModelSource | None = None
    ) -> DraftModelConfig:
        """The shape of a published model, from its config.json; `name` is for messages.

        Raises UsageError with all that keeps it from being a draft for a verifier of `vocab_size` tokens.
        """
        problems = _unfit(config, vocab_size)
        if problems:
            raise UsageError("\n".join([f"{name} cannot be an independent draft:", *(f"  {one}" for one in problems)]))
        facts, kind = VerifierFacts.from_config(config, where=f"{name}'s config.json"), str(config["model_type"])
        absent = kind == "qwen3" and not config.get("head_dim")
        return cls(
            **{**verifier_sizes(facts), "head_dim": _QWEN3_HEAD_DIM if absent else facts.head_dim},
            model_type=kind,
            layers=facts.layers,
            tie_word_embeddings=facts.tie_word_embeddings,
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            bos_token_id=facts.bos_token_id,
            eos_token_ids=facts.eos_token_ids,
            source=source,
        )

    @classmethod
    def _random(cls, facts: VerifierFacts, shape: RandomDraft) -> DraftModelConfig:
        sizes = {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "attention_heads": shape.attention_heads,
            "key_value_heads": shape.key_value_heads,
            "head_dim": shape.hidden_size // shape.attention_heads,
        }
        return cls(
            **{**verifier_sizes(facts), **sizes},
            model_type="llama",
            layers=shape.layers,
            bos_token_id=facts.bos_token_id,
            eos_token_ids=facts.eos_token_ids,
        )

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json: `transformer_layer_config` is the model's own config."""
        return {
            "architectures": ["CausalDraftModel"],
            "speculators_model_type": "draft_model",
            "transformer_layer_config": {
                "model_type": self.model_type,
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.attention_heads,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": self.head_dim,
                "vocab_size": self.vocab_size,
                "hidden_act": "silu",
                "rms_norm_eps": self.rms_norm_eps,
                "rope_parameters": dict(self.rope),
                "rope_theta": self.rope["rope_theta"],
                "max_position_embeddings": self.max_position_embeddings,
                "attention_bias": self.attention_bias,
                "mlp_bias": self.mlp_bias,
                "tie_word_embeddings": self.tie_word_embeddings,
                "bos_token_id": self.bos_token_id,
                "eos_token_id": list(self.eos_token_ids),
            },
            "draft_vocab_size": self.vocab_size,
            "aux_hidden_state_layer_ids": [],
        }

    @classmethod
    def from_config_json(
        cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None
    ) -> DraftModelConfig:
        """Back from there; raises UsageError when a key is missing."""
        try:
            layer = config["transformer_layer_config"]
            return cls(
                model_type=layer["model_type"],
                layers=layer["num_hidden_layers"],
                hidden_size=layer["hidden_size"],
                intermediate_size=layer["intermediate_size"],
                attention_heads=layer["num_attention_heads"],
                key_value_heads=layer["num_key_value_heads"],
                head_dim=layer["head_dim"],
                vocab_size=layer["vocab_size"],
                rope=layer["rope_parameters"],
                rms_norm_eps=layer["rms_norm_eps"],
                max_position_embeddings=layer["max_position_embeddings"],
                tie_word_embeddings=layer["tie_word_embeddings"],
                attention_bias=layer["attention_bias"],
                mlp_bias=layer["mlp_bias"],
                bos_token_id=layer["bos_token_id"],
                eos_token_ids=tuple(layer["eos_token_id"]),
            )
        except KeyError as error:
            raise UsageError(f"config.json of the draft has no key {error}") from error


Config = DraftModelConfig


def _unfit(config: Mapping[str, Any], vocab_size: int) -> list[str]:
    """What keeps a model from being a draft here for a verifier of `vocab_size` tokens."""
    kind = config.get("model_type")
    if kind not in CLASSES:
        return [f"it is of the type {kind}; allowed: {', '.join(CLASSES)}"]
    problems = []
    if config.get("vocab_size") != vocab_size:
        problems.append(
            f"its vocabulary has {config.get('vocab_size')} tokens, the verifier's {vocab_size}: proposals are token "
            "ids, so both must have the same tokenizer and vocabularies of one size"
        )
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"its MLP has {config['hidden_act']}; only silu is computed here")
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings") or 0
    if window and (config.get("use_sliding_window") or (kind == "mistral" and window < longest)):
        problems.append(f"its layers see a window of {window} tokens; only whole texts are read here")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (name := rope.get("rope_type") or rope.get("type") or "default") not in _ROPES:
        problems.append(f"its rotary positions are of the type {name}; allowed: {', '.join(_ROPES)}")
    if config.get("quantization_config") or config.get("compression_config"):
        problems.append("its weights are quantized; take the model that it was quantized from")
    return problems


def verifier_layers(options: DraftModel, layers: int) -> tuple[int, ...]:
    """Training reads none but the last state, which is always there: the teacher's."""
    return ()


def trained_parameters(options: DraftModel, facts: Mapping[str, float]) -> float:
    """How many parameters are trained; as many as the verifier's embedding has, where the model is not known yet."""
    if options.random is not None:
        head_dim = options.random.hidden_size // options.random.attention_heads
        return _parameters(options.random, head_dim, facts["vocab_size"], heads=2)
    known = ModelSource.of(str(options.model), options.revision).known_config()
    if known is None:
        return facts["vocab_size"] * facts["hidden_size"]
    shape = DraftModelConfig.of_model(known, str(options.model), known["vocab_size"])
    return _parameters(shape, shape.head_dim, shape.vocab_size, heads=1 if shape.tie_word_embeddings else 2)


def _parameters(shape: DraftModelConfig | RandomDraft, head_dim: int, vocab_size: float, heads: int) -> float:
    attention = 2 * head_dim * (shape.attention_heads + shape.key_value_heads)
    layer = shape.hidden_size * (attention + 3 * shape.intermediate_size)
    return shape.layers * layer + heads * vocab_size * shape.hidden_size


def external(options: DraftModel) -> Mapping[str, str]:
    """What pins the model that training begins with."""
    if options.random is not None:
        return {}
    return {"draft_model": ModelSource.of(str(options.model), options.revision).digest()}
