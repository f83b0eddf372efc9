"""The shape of a verifier's multi-token-prediction head, and how it stands in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speculators.algorithms.mtp.styles import ROUTER_BIAS, STYLES, Style, style_of
from speculators.errors import UsageError
from speculators.verifiers.latent import Latent
from speculators.verifiers.mixture import Mixture

if TYPE_CHECKING:
    from speculators.recipe.shapes.mtp import Mtp
    from speculators.verifiers.facts import VerifierFacts

_MIXTURE_KEYS = {
    "count": "num_experts",
    "per_token": "num_experts_per_tok",
    "intermediate_size": "moe_intermediate_size",
    "shared_size": "shared_expert_intermediate_size",
    "gates_shared": "shared_expert_gate",
    "corrects": "score_correction_bias",
    "groups": "n_group",
    "groups_per_token": "topk_group",
    "renormalizes": "norm_topk_prob",
    "scale": "routed_scaling_factor",
}
_LATENT_KEYS = {
    "heads": "num_attention_heads",
    "plain_dim": "qk_nope_head_dim",
    "turned_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
    "key_value_rank": "kv_lora_rank",
    "query_rank": "q_lora_rank",
}

TEXT_ONLY = "with images, a verifier's own head turns its keys by their rows and columns too"


@dataclass(frozen=True, kw_only=True)
class MtpConfig:
    """Everything that decides the head's parameters and its forward pass.

    `style` names one of `styles.STYLES`; `rope` has the form of transformers 5's `rope_parameters`, of which a
    `partial_rotary_factor` counts. `biases` are those of the query, key and value projections, `norms_heads` norms
    queries and keys head by head, `gates_output` has as many gates as queries in `q_proj`, head by head after them.
    With `mixture` the MLP is one of experts, with `latent` the attention is DeepSeek's; then the heads are those that
    its keys and values are written out for.
    """

    style: str
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    aux_layers: tuple[int, ...]
    rope: Mapping[str, Any]
    rms_norm_eps: float
    max_position_embeddings: int
    biases: bool = False
    norms_heads: bool = False
    gates_output: bool = False
    mixture: Mixture | None = None
    latent: Latent | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UsageError(f"`head_style` is {self.style!r}; allowed: {', '.join(STYLES)}")
        if len(self.aux_layers) != 1:
            raise UsageError("a multi-token-prediction head reads one of the verifier's streams, the last")

    @property
    def how(self) -> Style:
        """What the style says."""
        return STYLES[self.style]

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are turned by its position; the others are left."""
        if self.latent is not None:
            return self.latent.turned_dim
        return int(self.head_dim * float(self.rope.get("partial_rotary_factor", 1.0)))

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: Mtp, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> MtpConfig:
        """The head that a verifier of this kind has, as far as its config tells; its tensors tell the rest.

        Raises UsageError when the config promises no such head, or more than one.
        """
        if facts.mtp_layers != 1:
            raise UsageError(
                f"`algorithm.type` is mtp, which fine-tunes a verifier's own multi-token-prediction head, but this "
                f"verifier ({facts.model_type}) has {facts.mtp_layers or 'none'}; another algorithm trains a new draft"
            )
        style = style_of(facts.model_type)
        is_qwen = style == "qwen"
        return cls(
            **sizes(facts),
            style=style,
            aux_layers=(facts.layers,),
            biases=not is_qwen and facts.latent is None,
            norms_heads=is_qwen,
            gates_output=is_qwen,
        )

    def to_config_json(self) -> dict[str, Any]:
        """The head's part of config.json."""
        rope = dict(self.rope)
        return {
            "architectures": ["MtpDraftModel"],
            "speculators_model_type": "mtp",
            "num_nextn_predict_layers": 1,
            "head_style": self.style,
            "transformer_layer_config": {
                "model_type": "llama",
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": 1,
                "num_attention_heads": self.attention_heads,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": self.head_dim,
                "vocab_size": self.vocab_size,
                "hidden_act": "silu",
                "rms_norm_eps": self.rms_norm_eps,
                "rope_parameters": rope,
                "rope_theta": rope.get("rope_theta", 10000.0),
                "max_position_embeddings": self.max_position_embeddings,
                "attention_bias": self.biases,
                "use_qk_norm": self.norms_heads,
                "attn_output_gate": self.gates_output,
                **_written(self.mixture, _MIXTURE_KEYS),
                **_written(self.latent, _LATENT_KEYS),
            },
            "aux_hidden_state_layer_ids": list(self.aux_layers),
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> MtpConfig:
        """Back from there; raises UsageError when a key is missing."""
        try:
            layer = config["transformer_layer_config"]
            return cls(
                style=config["head_style"],
                hidden_size=layer["hidden_size"],
                intermediate_size=layer["intermediate_size"],
                attention_heads=layer["num_attention_heads"],
                key_value_heads=layer["num_key_value_heads"],
                head_dim=layer["head_dim"],
                vocab_size=layer["vocab_size"],
                aux_layers=tuple(config["aux_hidden_state_layer_ids"]),
                rope=layer["rope_parameters"],
                rms_norm_eps=layer["rms_norm_eps"],
                max_position_embeddings=layer["max_position_embeddings"],
                biases=layer["attention_bias"],
                norms_heads=layer["use_qk_norm"],
                gates_output=layer["attn_output_gate"],
                mixture=Mixture(**_read(layer, _MIXTURE_KEYS)) if "num_experts" in layer else None,
                latent=Latent(**_read(layer, _LATENT_KEYS)) if "kv_lora_rank" in layer else None,
            )
        except KeyError as error:
            raise UsageError(f"config.json of the draft has no key {error}") from error


Config = MtpConfig


def sizes(facts: VerifierFacts) -> dict[str, Any]:
    """The fields that a head shares with its verifier."""
    latent = facts.latent
    return {
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "attention_heads": facts.attention_heads if latent is None else latent.heads,
        "key_value_heads": facts.key_value_heads if latent is None else latent.heads,
        "head_dim": facts.head_dim if latent is None else latent.width,
        "vocab_size": facts.vocab_size,
        "rope": dict(facts.rope),
        "rms_norm_eps": facts.rms_norm_eps,
        "max_position_embeddings": facts.max_position_embeddings,
        "mixture": facts.mixture,
        "latent": latent,
    }


def told_by_shapes(config: MtpConfig, style: str, shapes: Mapping[str, Sequence[int]], where: str) -> MtpConfig:
    """The head's shape: what `config` has of the verifier's, and the rest as the `shapes` of its tensors tell it.

    `where` names the verifier in messages. Raises UsageError when its config lacks what tensors cannot tell.
    """
    queries = config.attention_heads * config.head_dim
    is_latent, is_mixed = "self_attn.kv_b_proj.weight" in shapes, "mlp.gate.weight" in shapes
    for is_there, said, what in (
        (is_latent, config.latent, "latent attention, and its config.json not the sizes of one"),
        (is_mixed, config.mixture, "experts, and its config.json does not say how many of them a token meets"),
    ):
        if is_there and said is None:
            raise UsageError(f"{where}: the multi-token-prediction head has {what}")
    if config.latent is not None and not is_latent:
        raise UsageError(f"{where}: the verifier has latent attention, and its multi-token-prediction head another")
    return replace(
        config,
        intermediate_size=config.intermediate_size if is_mixed else shapes["mlp.gate_proj.weight"][0],
        style=style,
        biases="self_attn.q_proj.bias" in shapes or "self_attn.kv_a_proj_with_mqa.bias" in shapes,
        norms_heads="self_attn.q_norm.weight" in shapes,
        gates_output=not is_latent and shapes["self_attn.q_proj.weight"][0] == 2 * queries,
        mixture=replace(
            config.mixture,
            count=shapes["mlp.gate.weight"][0],
            intermediate_size=shapes["mlp.experts.0.gate_proj.weight"][0],
            shared_size=shapes.get("mlp.shared_expert.gate_proj.weight", (0,))[0],
            gates_shared="mlp.shared_expert_gate.weight" in shapes,
            corrects=ROUTER_BIAS in shapes,
        )
        if config.mixture is not None and is_mixed
        else None,
    )


def verifier_layers(options: Mtp, layers: int) -> tuple[int, ...]:
    """Training reads none but the last state, which is always there; so does a round, as the one stream it asks for."""
    return ()


def trained_parameters(options: Mtp, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes; embedding and head are the verifier's."""
    hidden = facts["hidden_size"]
    inner = facts.get("intermediate_size", 4 * hidden)
    if "mixture_count" in facts:
        inner = facts["mixture_count"] * facts["mixture_intermediate_size"] + facts["mixture_shared_size"]
    return (6 * hidden + 3 * inner) * hidden


def _written(sizes: Mixture | Latent | None, keys: Mapping[str, str]) -> dict[str, Any]:
    return {} if sizes is None else {key: getattr(sizes, name) for name, key in keys.items()}


def _read(layer: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {name: layer[key] for name, key in keys.items()}
