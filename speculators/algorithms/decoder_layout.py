"""What drafts made of decoder layers have in common on disk: the layer's config and the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.verifiers.facts import VerifierFacts

Shapes = dict[str, tuple[int, ...]]

_UNSERVED_ROPE_KEYS = ("partial_rotary_factor", "mrope_section", "mrope_interleaved")  # drafts are plain decoders


def verifier_sizes(facts: VerifierFacts) -> dict[str, Any]:
    """The fields of a draft's config whose layers are as large as the verifier's own."""
    return {
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "attention_heads": facts.attention_heads,
        "key_value_heads": facts.key_value_heads,
        "head_dim": facts.head_dim,
        "vocab_size": facts.vocab_size,
        "rope": {key: value for key, value in facts.rope.items() if key not in _UNSERVED_ROPE_KEYS},
        "rms_norm_eps": facts.rms_norm_eps,
        "max_position_embeddings": facts.max_position_embeddings,
    }


def written_sizes(config: Mapping[str, Any], default_theta: float) -> dict[str, Any]:
    """The same fields, as a checkpoint's config.json says them; KeyError for one that nothing can stand in for."""
    layer = config["transformer_layer_config"]
    hidden, heads = layer["hidden_size"], layer["num_attention_heads"]
    rope = dict(layer.get("rope_parameters") or layer.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", float(layer.get("rope_theta") or default_theta))
    return {
        "hidden_size": hidden,
        "intermediate_size": layer["intermediate_size"],
        "attention_heads": heads,
        "key_value_heads": layer.get("num_key_value_heads") or heads,
        "head_dim": layer.get("head_dim") or hidden // heads,
        "vocab_size": layer["vocab_size"],
        "rope": rope,
        "rms_norm_eps": layer["rms_norm_eps"],
        "max_position_embeddings": layer.get("max_position_embeddings") or 2048,
    }


def completed_config(config: Mapping[str, Any], absent: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what absent keys mean (`absent`), the decoder's own keys included; nothing is changed.

    Raises UsageError when `transformer_layer_config` is missing or of an unknown kind.
    """
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        raise UsageError("config.json has no `transformer_layer_config`: it is not a checkpoint in speculators' format")
    whole = {**absent, **config}
    whole["transformer_layer_config"] = _completed_layer(layer, str(config.get("speculators_model_type")))
    whole.setdefault("draft_vocab_size", whole["transformer_layer_config"]["vocab_size"])
    if whole["draft_vocab_size"] is None:
        whole["draft_vocab_size"] = whole["transformer_layer_config"]["vocab_size"]
    return whole


def _completed_layer(layer: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """Keys that a writer left out have transformers' default for that kind of model."""
    from transformers import AutoConfig

    kind = layer.get("model_type")
    if kind not in ("llama", "qwen3"):
        article = "an" if algorithm[:1] in "aeiou" else "a"
        what = f"transformer_layer_config.model_type is {kind!r}"
        raise UsageError(f"{what}; {article} {algorithm} draft is `llama` or `qwen3`")
    options = {key: value for key, value in layer.items() if key != "model_type"}
    defaults = AutoConfig.for_model(kind, **options).to_dict()
    return {**{key: value for key, value in defaults.items() if value is not None}, **layer}


def layer_tensors(layer: Mapping[str, Any], number: int, width: int) -> Shapes:
    """Name -> shape of decoder layer `number`, whose projections read `width` channels; of a completed config."""
    hidden, inner = layer["hidden_size"], layer["intermediate_size"]
    heads, groups = layer["num_attention_heads"], layer["num_key_value_heads"]
    size = layer.get("head_dim") or hidden // heads
    attention: Shapes = {
        "q_proj.weight": (heads * size, width),
        "k_proj.weight": (groups * size, width),
        "v_proj.weight": (groups * size, width),
        "o_proj.weight": (hidden, heads * size),
    }
    if layer["model_type"] == "qwen3":
        attention |= {"q_norm.weight": (size,), "k_norm.weight": (size,)}
    if layer.get("attention_bias"):
        attention |= {name.replace("weight", "bias"): shape[:1] for name, shape in attention.items() if "proj" in name}
    shapes = {f"layers.{number}.self_attn.{name}": shape for name, shape in attention.items()}
    for name, shape in {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}.items():
        shapes[f"layers.{number}.mlp.{name}.weight"] = shape
        if layer.get("mlp_bias"):
            shapes[f"layers.{number}.mlp.{name}.bias"] = shape[:1]
    shapes[f"layers.{number}.input_layernorm.weight"] = (hidden,)
    shapes[f"layers.{number}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def vocabulary_tensors(config: Mapping[str, Any]) -> Shapes:
    """The maps between the two vocabularies, where the draft's is the smaller one."""
    draft, whole = config["draft_vocab_size"], config["transformer_layer_config"]["vocab_size"]
    return {} if draft == whole else {"d2t": (draft,), "t2d": (whole,)}
