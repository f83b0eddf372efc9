"""EAGLE-1 and HASS: features foretold along chains, the first at every token (`algorithms/eagle/objective.py`)."""

from __future__ import annotations

from speculators.recipe.shapes.eagle import Eagle, Hass
from speculators.steps.training_memory import rows
from speculators.steps.training_memory.loss_chunks import Judged, chunk_bytes
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import FLOAT, Setting


def held(algorithm: Eagle | Hass, setting: Setting) -> Held:
    """What a training holds. The head, over the whole vocabulary, is the verifier's and is not trained."""
    layer, load, steps = setting.layer, setting.load, algorithm.trained_steps
    hidden, low = layer.hidden, setting.product
    judged = Judged(
        draft_vocabulary=setting.vocabulary,
        loss=algorithm.loss,
        steps=steps,
        is_renormalized=True,
    )
    read = 3 * hidden * low + rows.keys_values(setting, layer) + rows.tables(layer)
    chain = hidden * low + rows.tables(layer) + rows.body(setting, layer)
    chain += (steps - 1) * (read + rows.body(setting, layer)) + rows.earlier_steps(setting, layer, steps)
    chain += steps * 2 * FLOAT * hidden + setting.state * hidden
    kept = load.tokens * read + load.chains * chain + steps * rows.probabilities(setting, layer)
    matrices = 2 * hidden**2 + layer.attention() + layer.mlp
    compared = steps * load.chains * 2 * FLOAT * hidden  # the features foretold, beside the verifier's
    backward = compared + FLOAT * matrices + rows.backward_of_mlp(setting, layer.intermediate, load.chains)
    return Held(
        hidden=matrices,
        frozen=setting.embedding,
        shared=setting.embedding,
        low=setting.is_rounded * 2 * setting.embedding,
        rounded=matrices,
        largest=hidden * max(layer.intermediate, 2 * hidden),
        kept_bytes=kept,
        passing_bytes=max(chunk_bytes(setting, judged), backward, rows.attending(setting, layer)),
    )
