"""EAGLE-1, EAGLE-2 and HASS drafts as their authors release them: one layer without input norm, no norm, no head."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.algorithms.eagle.config import EagleConfig
from speculators.algorithms.eagle.layout import completed, tensors
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.assignment import computed
from speculators.checkpoints.importers.base import Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "eagle"
TITLE = "EAGLE-1 and EAGLE-2 (SafeAILab)"


def recognise(foreign: Foreign) -> Sequence[str]:
    """Its `fc` joins two vectors of the draft's width, and no norm of states is there."""
    header = foreign.headers.get("fc.weight")
    fc = header.shape if header is not None else ()
    if len(fc) != 2 or fc[1] != 2 * fc[0] or any("hidden_norm" in name for name in foreign.headers):
        return ()
    return ("its fc reads an embedding and one state",)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """Say a checkpoint's config and tensors in our words, for a verifier, of which it reads the last state alone.

    Raises UsageError for a draft that this project's cannot be, naming every tensor at fault: norms that some trainers
    add, biases of the projections, more layers, a head.
    """
    if aux_layers is not None:
        raise UsageError(f"{foreign.name} reads the verifier's last state alone; there are no layers to choose")
    config, shapes = foreign.config, {name: header.shape for name, header in foreign.headers.items()}
    layer = {"model_type": "llama", "rms_norm_eps": 1e-6, **config}
    whole = completed(
        {
            "speculators_model_type": "eagle",
            "transformer_layer_config": {key: value for key, value in layer.items() if value is not None},
            "fc_bias": "fc.bias" in shapes,
            "eagle_aux_hidden_state_layer_ids": [facts.layers],
        }
    )
    shape = EagleConfig.from_config_json(whole)
    problems = _unfit(shape, facts, int(config.get("num_hidden_layers") or 1))
    draft = shape.to_config_json()
    # Positions are the verifier's; how the draft was trained does not limit how far it can be asked.
    longest = max(shape.max_position_embeddings, facts.max_position_embeddings)
    draft["transformer_layer_config"]["max_position_embeddings"] = longest
    expected = tensors(draft)
    dropped = computed(foreign)
    problems += [
        f"{name} is no tensor of an EAGLE-1 draft here"
        for name in shapes
        if name not in expected and name not in dropped
    ]
    attached = tuple(name for name in ("embed_tokens.weight",) if name not in shapes)
    problems += [f"{name} is missing" for name in expected if name not in shapes and name not in attached]
    problems += [
        f"{name} has the shape {list(shapes[name])}, expected {list(size)}"
        for name, size in expected.items()
        if name in shapes and tuple(shapes[name]) != size
    ]
    if problems:
        raise UsageError("\n".join([f"{foreign.name} cannot be converted:", *(f"  {what}" for what in problems)]))
    return Translation(draft, expected, {name: name for name in expected if name in shapes}, dropped, attached)


def _unfit(shape: EagleConfig, facts: VerifierFacts, layers: int) -> list[str]:
    """What of a draft does not fit the verifier, or this project's network."""
    problems = []
    if shape.hidden_size != facts.hidden_size:
        problems.append(f"it reads states of width {shape.hidden_size}, the verifier's are {facts.hidden_size} wide")
    if shape.vocab_size != facts.vocab_size:
        problems.append(f"it is for a vocabulary of {shape.vocab_size} tokens, the verifier has {facts.vocab_size}")
    if layers != 1:
        problems.append(f"it has {layers} layers; an EAGLE-1 draft here has one")
    return problems
