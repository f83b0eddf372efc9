"""Older checkpoints in this very format: configs of speculators 0.3 and before lack some keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.layout import ABSENT
from speculators.algorithms.eagle3.layout import tensors as eagle3_tensors
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.checkpoints.layout import completed
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts, rope_parameters
from speculators.verifiers.layer_ids import auto_layers

NAME = "speculators"
TITLE = "the speculators format"

_BY_PRODUCTS = ("auto_map", "has_no_defaults_at_init", "inference_type", "transformers_version", "torch_dtype")
_WRITTEN_ANEW = ("architectures", "speculators_version", "speculators_config", "dtype")
_BORROWED = ("verifier_lm_head.weight", "verifier_norm.weight", "verifier.lm_head.weight")


def recognise(foreign: Foreign) -> Sequence[str]:
    """The format names itself."""
    kind = foreign.config.get("speculators_model_type")
    if kind is None:
        return ()
    return (f"its config says speculators_model_type {kind}, version {foreign.config.get('speculators_version', '?')}",)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Every key written out, each with the meaning that vLLM gives to its absence."""
    config = foreign.config
    kind = config.get("speculators_model_type")
    if kind != "eagle3":
        raise UsageError(
            f"{foreign.name} is in the speculators format, of the type {kind}; eagle3 is what is converted"
        )
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, Mapping) or layer.get("model_type", "llama") != "llama":
        raise UsageError(f"{foreign.name}: transformer_layer_config must be there, and of the type llama")
    if layer.get("vocab_size") not in (None, facts.vocab_size):
        raise UsageError(
            f"{foreign.name} is for a vocabulary of {layer['vocab_size']} tokens, the verifier has {facts.vocab_size}"
        )
    notices = [
        f"config.json did not say {key}; taken: {str(meaning).lower()}, as vLLM does"
        for key, meaning in ABSENT.items()
        if key not in config and isinstance(meaning, bool) and key.startswith(("norm", "fc"))
    ]
    whole = completed({**config, "transformer_layer_config": {"model_type": "llama", **layer}})
    layers = aux_layers or config.get("eagle_aux_hidden_state_layer_ids")
    if not layers:
        layers = auto_layers(facts.layers)
        notices.append(f"config.json did not say which layers are read; taken: {list(layers)}")
    shape = Eagle3Config.from_config_json({**whole, "eagle_aux_hidden_state_layer_ids": list(layers)})
    shape = replace(
        shape,
        rope=rope_parameters(layer),
        target_hidden_size=None if shape.stream_width == shape.hidden_size else shape.target_hidden_size,
    )
    if shape.stream_width != facts.hidden_size:
        raise UsageError(
            f"{foreign.name} is for states {shape.stream_width} wide, and the verifier's are {facts.hidden_size}"
        )
    if max(shape.aux_layers) > facts.layers:
        raise UsageError(
            f"{foreign.name} reads layer {max(shape.aux_layers)}, and the verifier has {facts.layers} layers"
        )
    kept = {key: value for key, value in config.items() if key not in (*_BY_PRODUCTS, *_WRITTEN_ANEW)}
    draft = {**kept, **shape.to_config_json()}
    notices += [f"{key} is left out of config.json: nothing reads it" for key in _BY_PRODUCTS if key in config]
    return _assigned(foreign, draft, notices)


def _assigned(foreign: Foreign, draft: Mapping[str, Any], notices: Sequence[str]) -> Translation:
    expected, headers = eagle3_tensors(draft), foreign.headers
    dropped = {name: "it is the verifier's own" for name in _BORROWED if name in headers}
    unknown = [name for name in headers if name not in expected and name not in dropped]
    if unknown:
        raise UsageError(f"{foreign.name} holds {', '.join(unknown[:4])}, which its config has no place for")
    missing = [name for name in expected if name not in headers]
    attached = tuple(name for name in missing if name == "embed_tokens.weight" and not draft["target_hidden_size"])
    made = tuple(name for name in missing if name == "t2d" and "d2t" in headers)
    lacking = [name for name in missing if name not in (*attached, *made)]
    if lacking:
        raise UsageError(f"{foreign.name} lacks {', '.join(lacking[:4])}")
    tensors = {name: name for name in expected if name in headers}
    return Translation(draft, expected, tensors, dropped, attached, made, tuple(notices))


def proposal_length(config: Mapping[str, Any]) -> int | None:
    """How many tokens a checkpoint in the format proposes a round, where it says so."""
    try:
        return int(config["speculators_config"]["proposal_methods"][0]["speculative_tokens"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
