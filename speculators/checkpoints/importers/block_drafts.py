"""What DFlash checkpoints outside this project, and those of drafts on its layers, have in common.

A flat Qwen3 config, tensors named as ours, and ids of layers whose *output* is read: one less than ours, which name the
layer that a stream enters. Settings stand in `dflash_config` or at the top; where they are in both, the first counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from speculators.algorithms import load
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.assignment import assigned, computed
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.importers.native import written_rope
from speculators.checkpoints.layout import layout_of
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.lender import Part

SECTION = "dflash_config"

_FUSED = re.compile(r"layers\.\d+\.self_attn\.(qkv)_proj\.weight")
_LAYER_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "hidden_act", "rms_norm_eps", "attention_bias"),
)
_BORROWED: Mapping[str, Part] = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "output_multiplier": (None, 1),
    "final_logit_softcapping": (None, 0),
    "input_embedding_scale": (None, 1),
    "attention_value_scale": (None,),
    "add_swa_attention_sink_bias": (None, False),
    "attention_mode": (None, "gqa"),
    "use_swa": (None, False),
    "sample_from_anchor": (None, False),
    "projector_type": (None, "dflash"),
}
"""What other trainers' drafts may have beside ours, and the values with which it changes nothing."""


def has_context(foreign: Foreign) -> bool:
    """Whether it fuses the verifier's streams and norms them once, for all its layers, as these drafts do."""
    names = foreign.headers
    return "fc.weight" in names and "hidden_norm.weight" in names


def setting(foreign: Foreign, key: str) -> Any:
    """A setting of the draft; None where the config says nothing."""
    section = _section(foreign)
    return section[key] if key in section else foreign.config.get(key)


def translate_block_draft(
    foreign: Foreign,
    facts: VerifierFacts,
    aux_layers: Sequence[int] | None,
    *,
    kind: str,
    block_size: int,
    own: Mapping[str, Any],
    known: Sequence[str] = (),
) -> Translation:
    """The draft as one of our type `kind`, with its `own` keys; `known` are those of `dflash_config` beside the usual.

    Raises UsageError where config and verifier, or our network, do not agree, and for settings that are not known.
    """
    _check_settings(foreign, ("target_layer_ids", "mask_token_id", "block_size", "causal", "num_target_layers", *known))
    _check_verifier(foreign, facts)
    mask = setting(foreign, "mask_token_id")
    if mask is None:
        raise UsageError(f"{foreign.name}: config.json does not say which token is masked (mask_token_id)")
    said = {
        "speculators_model_type": kind,
        "transformer_layer_config": {**_layer(foreign, facts), **_windows(foreign)},
        "draft_vocab_size": foreign.config.get("draft_vocab_size") or facts.vocab_size,
        "block_size": block_size,
        "aux_hidden_state_layer_ids": list(aux_layers or _entered(foreign)),
        "mask_token_id": int(mask),
        "sliding_window_non_causal": not _is_causal(foreign),
        **own,
    }
    _check_layers(foreign, facts, said["aux_hidden_state_layer_ids"])
    layout = layout_of(said)
    shape = load(kind, "config").Config.from_config_json(layout.completed(said))
    draft = shape.to_config_json()
    expected = layout.tensors(layout.completed(draft))
    heads, groups = shape.attention_heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    parts = {"q": (0, heads), "k": (heads, heads + groups), "v": (heads + groups, heads + 2 * groups)}
    fused = [name for name in foreign.headers if _FUSED.fullmatch(name)]
    split = {source.replace("qkv", one): (source, rows) for source in fused for one, rows in parts.items()}
    both = [name for name in split if name in foreign.headers]
    if both:
        raise UsageError(f"{foreign.name} holds {both[0]} and, with others in one, {split[both[0]][0]}")
    ours = {name: name for name in foreign.headers} | {name: source for name, (source, _) in split.items()}
    borrowed = {name: part for name, part in _BORROWED.items() if name in foreign.headers and name not in expected}
    dropped = computed(foreign)
    made = ("t2d",) if "d2t" in foreign.headers and "t2d" not in foreign.headers and "t2d" in expected else ()
    wanted = [name for name in expected if name not in made]
    return Translation(
        draft,
        expected,
        assigned(foreign, wanted, ours, (*borrowed, *dropped), f"a {kind} draft"),
        dropped,
        made=made,
        borrowed=borrowed,
        rows={name: rows for name, (_, rows) in split.items()},
        given=dict.fromkeys(fused, (heads + 2 * groups, shape.hidden_size)),
        speculative_tokens=shape.proposed,
    )


def _section(foreign: Foreign) -> Mapping[str, Any]:
    found = foreign.config.get(SECTION)
    return found if isinstance(found, Mapping) else {}


def _check_settings(foreign: Foreign, known: Sequence[str]) -> None:
    """What the config asks for that our network does not do."""
    if foreign.config.get("quantization_config"):
        raise UsageError(f"{foreign.name} is quantised; only drafts in float32, bfloat16 or float16 are converted")
    for key, neutral in _NEUTRAL.items():
        if key not in known and setting(foreign, key) not in neutral:
            raise UsageError(
                f"{foreign.name} has {key}: {setting(foreign, key)!r}, which a draft of this project does not do"
            )
    unknown = [key for key in _section(foreign) if key not in known and key not in _NEUTRAL]
    if unknown:
        raise UsageError(
            f"{foreign.name}: {SECTION} says {', '.join(unknown)}, which is not known here; "
            "nothing is left out without a reason"
        )


def _check_verifier(foreign: Foreign, facts: VerifierFacts) -> None:
    """Sizes that the draft shares with its verifier."""
    for key, what, own in (
        ("hidden_size", "a hidden size", facts.hidden_size),
        ("vocab_size", "a vocabulary size", facts.vocab_size),
        ("num_target_layers", "a number of layers", facts.layers),
    ):
        value = setting(foreign, key)
        if value is None and key != "num_target_layers":
            raise UsageError(f"{foreign.name}: config.json has no `{key}`")
        if value not in (None, own):
            raise UsageError(f"{foreign.name} is for a verifier with {what} of {value}, and this one's is {own}")


def _layer(foreign: Foreign, facts: VerifierFacts) -> dict[str, Any]:
    """The decoder's own keys."""
    config = foreign.config
    return {
        "model_type": "qwen3",
        **{key: config[key] for key in _LAYER_KEYS if config.get(key) is not None},
        "rope_parameters": written_rope(config),
        # Positions are the verifier's; how the draft was trained does not limit how far it can be asked.
        "max_position_embeddings": max(
            int(config.get("max_position_embeddings") or 2048), facts.max_position_embeddings
        ),
    }


def _kinds(foreign: Foreign) -> list[str]:
    """The kind of attention of each layer."""
    return list(foreign.config.get("layer_types") or ())


def _windows(foreign: Foreign) -> dict[str, Any]:
    """The keys of layers that see only so many positions back, where there are some."""
    if "sliding_attention" not in _kinds(foreign):
        return {}
    window = foreign.config.get("sliding_window")
    return {"layer_types": _kinds(foreign), "sliding_window": window, "use_sliding_window": True}


def _is_causal(foreign: Foreign) -> bool:
    """Whether, in layers with a window, no slot of a block sees a later one; without a window all see each other.

    As the authors' code and vLLM's have it: what `is_causal` says of all layers, else `causal`; else layers with a
    window are. Raises UsageError for a layer without one that is.
    """
    said = foreign.config.get("is_causal")
    said = _section(foreign).get("causal") if said is None else said
    if said and set(_kinds(foreign)) != {"sliding_attention"}:
        raise UsageError(f"{foreign.name} is causal within a block, which a draft without a window is not here")
    return "sliding_attention" in _kinds(foreign) and (said is None or bool(said))


def _entered(foreign: Foreign) -> list[int]:
    """The streams that are read, as the ids of the layers that they enter."""
    left = setting(foreign, "target_layer_ids")
    if not left:
        raise UsageError(f"{foreign.name}: config.json does not say which layers are read (target_layer_ids)")
    return [int(layer) + 1 for layer in left]


def _check_layers(foreign: Foreign, facts: VerifierFacts, layers: Sequence[int]) -> None:
    if list(layers) != sorted(set(layers)):
        raise UsageError(f"{foreign.name} reads the streams {list(layers)}; they must be in the verifier's order")
    if layers[0] < 0 or layers[-1] > facts.layers:
        raise UsageError(
            f"{foreign.name} reads the stream that enters layer {layers[-1]}; the verifier has {facts.layers} layers"
        )
    if layers[-1] == facts.layers:
        raise UsageError(
            f"{foreign.name} reads what the verifier's last layer gives; its own code takes that after the final norm, "
            "and vLLM before it, so what it was trained with is not known"
        )
