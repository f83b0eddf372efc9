"""A plain causal model that is to draft as it is: its own folder, as transformers writes it."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.algorithms.draft_model.config import CLASSES, DraftModelConfig
from speculators.algorithms.draft_model.layout import plain_name, tensors
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "draft_model"
TITLE = "a plain causal model (transformers, vLLM)"

_ALWAYS = ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight")
_HEAD = "lm_head.weight"


def recognise(foreign: Foreign) -> Sequence[str]:
    """It is a whole model of a family that is known here."""
    kind = str(foreign.config.get("model_type"))
    if kind not in CLASSES or CLASSES[kind] not in (foreign.config.get("architectures") or ()):
        return ()
    if any(name not in foreign.headers for name in _ALWAYS):
        return ()
    return (f"it is a whole model of its own, a {CLASSES[kind]}",)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Say it in our words; raises UsageError where it does not fit the verifier or this project's network."""
    if aux_layers is not None:
        raise UsageError(f"{foreign.name} reads the text alone; there are no layers to choose")
    draft = DraftModelConfig.of_model(foreign.config, foreign.name, facts.vocab_size).to_config_json()
    expected = tensors(draft)
    places = {name: plain_name(name) for name in expected}
    dropped = {
        name: "it is computed from the config" for name in foreign.headers if name.endswith("rotary_emb.inv_freq")
    }
    if _HEAD not in expected and _HEAD in foreign.headers:
        dropped[_HEAD] = "config.json says that it is the embedding"
    known = {*places.values(), *dropped}
    problems = [f"{theirs} is missing" for theirs in places.values() if theirs not in foreign.headers]
    problems += [f"{name} is no tensor of such a model" for name in foreign.headers if name not in known]
    if problems:
        raise UsageError("\n".join([f"{foreign.name} cannot be converted:", *(f"  {what}" for what in problems)]))
    return Translation(draft, expected, places, dropped, reads_text=True)
