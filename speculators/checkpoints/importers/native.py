"""What all EAGLE-3 checkpoints outside this project have in common: a flat Llama config, and tensors named alike.

The sources differ in which streams the ids in their config mean and in what a flag says; each has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speculators.algorithms.decoder_layout import Shapes
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.layout import tensors as eagle3_tensors
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.algorithms.peagle.layout import tensors as peagle_tensors
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.assignment import computed, listed, refuse_unknown
from speculators.checkpoints.importers.base import Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts, rope_parameters
from speculators.verifiers.layer_ids import auto_layers

LAYER = "midlayer."
"""The one decoder layer under its first name; our name, and vLLM's, is `layers.0.`."""

MASK_STATE = "mask_hidden"
"""What P-EAGLE has in the place of the verifier's streams of a token that is not known yet."""

_WHOLE = "the draft has the verifier's whole vocabulary, so ids need no map"


def has_layer(foreign: Foreign, prefix: str) -> bool:
    """Whether the first decoder layer has this name and reads embeddings and states side by side, as EAGLE-3's does.

    P-EAGLE's, with its state of a masked token, is no draft of EAGLE-3.
    """
    names = foreign.headers
    return f"{prefix}hidden_norm.weight" in names and "fc.weight" in names and MASK_STATE not in names


def eagle_config(foreign: Foreign) -> Mapping[str, Any]:
    """The nested section of ModelOpt and SpecForge; empty where there is none."""
    found = foreign.config.get("eagle_config")
    return found if isinstance(found, Mapping) else {}


def listed_layers(foreign: Foreign) -> tuple[int, ...] | None:
    """The streams that the config lists, as the ids of the layers that they enter; None when it lists none.

    At the top the ids are vLLM's, and so ours. In `eagle_config` an id is the layer that a stream *leaves*: trainers
    and SGLang read it so, and their default, [1, n // 2 - 1, n - 4], is then EAGLE-3's [2, n // 2, n - 3]. The streams
    stand in the order of the layers however the config lists them.
    """
    top, nested = (part.get("eagle_aux_hidden_state_layer_ids") for part in (foreign.config, eagle_config(foreign)))
    if top:
        return tuple(sorted(int(layer) for layer in top))
    return tuple(sorted(int(layer) + 1 for layer in nested)) if nested else None


def translate_native(
    foreign: Foreign,
    facts: VerifierFacts,
    aux_layers: Sequence[int] | None,
    *,
    norm_output: bool = False,
    mask_token_id: int | None = None,
) -> Translation:
    """The draft in our words; raises UsageError where the config and the verifier, or our network, do not agree.

    With a `mask_token_id` it is one of P-EAGLE, else one of EAGLE-3.
    """
    notices: list[str] = []
    layers = tuple(aux_layers) if aux_layers is not None else listed_layers(foreign)
    if layers is None:
        layers = auto_layers(facts.layers)
        notices.append(f"the config does not say which layers are read; taken: {list(layers)}, EAGLE-3's own")
    _check_readable(foreign, facts, layers)
    fields = _fields(foreign, facts, layers, norm_output, notices)
    if mask_token_id is None:
        return _assigned(foreign, Eagle3Config(**fields).to_config_json(), eagle3_tensors, "an EAGLE-3 draft", notices)
    draft = PEagleConfig(**fields, mask_token_id=mask_token_id).to_config_json()
    return _assigned(foreign, draft, peagle_tensors, "a P-EAGLE draft", notices)


def _fields(
    foreign: Foreign, facts: VerifierFacts, layers: tuple[int, ...], norm_output: bool, notices: list[str]
) -> dict[str, Any]:
    """The fields that EAGLE-3's config has."""
    config, headers = foreign.config, foreign.headers
    hidden, heads = _size(foreign, "hidden_size"), _size(foreign, "num_attention_heads")
    vocabulary = headers["t2d"].shape[0] if "t2d" in headers else int(config.get("vocab_size") or facts.vocab_size)
    if vocabulary != facts.vocab_size:
        raise UsageError(
            f"{foreign.name} is for a vocabulary of {vocabulary} tokens, and the verifier has {facts.vocab_size}"
        )
    return {
        "hidden_size": hidden,
        "intermediate_size": _size(foreign, "intermediate_size"),
        "attention_heads": heads,
        "key_value_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or hidden // heads),
        "vocab_size": vocabulary,
        "draft_vocab_size": int(config.get("draft_vocab_size") or _rows(foreign) or vocabulary),
        "aux_layers": layers,
        "rope": written_rope(config),
        "rms_norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        # Positions are the verifier's; how the draft was trained does not limit how far it can be asked.
        "max_position_embeddings": max(
            int(config.get("max_position_embeddings") or 2048), facts.max_position_embeddings
        ),
        "layers": int(config.get("num_hidden_layers") or 1),
        "hidden_act": str(config.get("hidden_act") or "silu"),
        "norm_before_residual": bool(config.get("norm_before_residual", False)),
        "norm_before_fc": bool(eagle_config(foreign).get("norm_before_fc", config.get("norm_before_fc", False))),
        "fc_norm": bool(config.get("fc_norm", False)),
        "norm_output": norm_output,
        "target_hidden_size": _stream_width(foreign, facts, hidden, len(layers), notices),
    }


def _assigned(
    foreign: Foreign, draft: Mapping[str, Any], layout: Callable[..., Shapes], what: str, notices: Sequence[str]
) -> Translation:
    """Every tensor of ours with the source's name for it, and what becomes of the source's others."""
    expected, ours = layout(draft), {_our_name(name): name for name in foreign.headers}
    tensors = {name: ours[name] for name in expected if name in ours}
    dropped = computed(foreign)
    if "d2t" not in expected:
        dropped |= {name: _WHOLE for name in ("d2t", "t2d") if name in foreign.headers}
        if ("d2t" in dropped and foreign.read("d2t").any()) or ("t2d" in dropped and not foreign.read("t2d").all()):
            raise UsageError(f"{foreign.name} maps its ids to others, and its config says that they are the verifier's")
    refuse_unknown(foreign, {*tensors.values(), *dropped}, what)
    missing = [name for name in expected if name not in tensors]
    attached, made = [], []
    if "embed_tokens.weight" in missing and draft["target_hidden_size"] in (None, _hidden(draft)):
        attached.append("embed_tokens.weight")
    if "lm_head.weight" in missing and "d2t" not in expected and draft["target_hidden_size"] in (None, _hidden(draft)):
        attached.append("lm_head.weight")
    if "t2d" in missing and "d2t" in tensors:
        made.append("t2d")
    lacking = [name for name in missing if name not in (*attached, *made)]
    if lacking:
        width = draft["target_hidden_size"]
        why = f"; the verifier's are {width} wide, the draft's {_hidden(draft)}" if width else ""
        raise UsageError(f"{foreign.name} lacks {listed(lacking)}{why if 'embed_tokens.weight' in lacking else ''}")
    mask = foreign.headers.get(MASK_STATE)
    # Whether there is an axis of size one more or less, everybody reads it in a row.
    given = {MASK_STATE: mask.shape} if mask is not None and mask.shape[-1:] == expected[MASK_STATE][-1:] else {}
    return Translation(draft, expected, tensors, dropped, tuple(attached), tuple(made), tuple(notices), given=given)


def _check_readable(foreign: Foreign, facts: VerifierFacts, layers: Sequence[int]) -> None:
    """What our network cannot be, said before anything is worked out from it."""
    config = foreign.config
    if config.get("quantization_config"):
        raise UsageError(f"{foreign.name} is quantised; only drafts in float32, bfloat16 or float16 are converted")
    if eagle_config(foreign).get("use_aux_hidden_state", True) is False:
        raise UsageError(f"{foreign.name} reads the verifier's last state only, so it is an EAGLE-1 draft, not EAGLE-3")
    if int(config.get("parallel_draft_step") or eagle_config(foreign).get("parallel_draft_step") or 1) > 1:
        raise UsageError(f"{foreign.name} drafts several tokens in parallel, which an EAGLE-3 draft does not")
    if max(layers) > facts.layers:
        raise UsageError(
            f"{foreign.name} reads the stream that enters layer {max(layers)}, "
            f"and the verifier has {facts.layers} layers"
        )


def _stream_width(foreign: Foreign, facts: VerifierFacts, hidden: int, streams: int, notices: list[str]) -> int | None:
    """`target_hidden_size`: None when draft and verifier are of the same width."""
    width = int(foreign.config.get("target_hidden_size") or hidden)
    fused = foreign.headers["fc.weight"].shape[-1]
    if width != facts.hidden_size and fused == streams * facts.hidden_size:
        notices.append(f"the config does not say so, but fc reads {streams} streams of {facts.hidden_size}")
        width = facts.hidden_size
    if width != facts.hidden_size:
        raise UsageError(
            f"{foreign.name} is for a verifier whose states are {width} wide, and this one's are {facts.hidden_size}"
        )
    return None if width == hidden else width


def written_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """As the source has it; YaRN's original length is written out, since the context length may be raised."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "yarn":
        rope.setdefault("original_max_position_embeddings", int(config.get("max_position_embeddings") or 2048))
    return rope


def _rows(foreign: Foreign) -> int | None:
    """The draft's own vocabulary by its map, for configs that do not say."""
    return foreign.headers["d2t"].shape[0] if "d2t" in foreign.headers else None


def _size(foreign: Foreign, key: str) -> int:
    value = foreign.config.get(key)
    if not isinstance(value, int):
        raise UsageError(f"{foreign.name}: config.json has no `{key}`")
    return value


def _our_name(name: str) -> str:
    return f"layers.0.{name.removeprefix(LAYER)}" if name.startswith(LAYER) else name


def _hidden(draft: Mapping[str, Any]) -> int:
    return int(draft["transformer_layer_config"]["hidden_size"])
