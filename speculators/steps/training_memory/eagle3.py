"""EAGLE-3: chains unrolled over all steps, their first one at every token (`algorithms/eagle3/objective.py`)."""

from __future__ import annotations

from dataclasses import replace

from speculators.recipe.shapes.eagle3 import Eagle3
from speculators.recipe.shapes.peagle import PEagle
from speculators.steps.training_memory import rows
from speculators.steps.training_memory.loss_chunks import Judged, chunk_bytes
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import FLOAT, Setting


def held(algorithm: Eagle3, setting: Setting) -> Held:
    """What a training holds."""
    steps = algorithm.training_time_test.steps
    normed = algorithm.normalization.before_fc or algorithm.normalization.per_aux_layer
    kept = setting.load.tokens * at_tokens(algorithm, setting, norms_features=normed)
    kept += setting.load.chains * _at_chains(algorithm, setting, steps)
    kept += rows.probabilities(setting, setting.layer) * steps * algorithm.layers
    gradients = inner(algorithm, setting)  # a later step's backward pass makes those of all layers
    found = with_weights(algorithm, setting, judged(algorithm, setting, steps), kept, gradients, setting.load.chains)
    return found if steps > 1 else replace(found, summed=0.0)


def judged(algorithm: Eagle3 | PEagle, setting: Setting, steps: int) -> Judged:
    """What the loss compares."""
    hidden = setting.layer.hidden
    return Judged(
        draft_vocabulary=algorithm.draft_vocab_size or setting.vocabulary,
        loss=algorithm.loss,
        steps=steps,
        is_renormalized=algorithm.teacher == "renormalized",
        trained=hidden * algorithm.train_head,
    )


def inner(algorithm: Eagle3 | PEagle, setting: Setting) -> float:
    """Parameters of all decoder layers, of which the first reads the embedding too."""
    layer, layers = setting.layer, algorithm.layers
    return layer.attention(2 * layer.hidden) + (layers - 1) * layer.attention() + layers * layer.mlp


def with_weights(
    algorithm: Eagle3 | PEagle,
    setting: Setting,
    compared: Judged,
    kept: float,
    gradients: float,
    count: float,
) -> Held:
    """The network's weights beside what is `kept`.

    `gradients` are those of layers that are there while all of it still is, `count` the most rows of an MLP.
    """
    layer = setting.layer
    matrices = streams(algorithm) * layer.hidden**2 + inner(algorithm, setting)
    head, table = compared.draft_vocabulary * layer.hidden, algorithm.train_embeddings * setting.embedding
    tables = algorithm.train_head * head + table
    backward = FLOAT * gradients + rows.backward_of_mlp(setting, layer.intermediate, count)
    return Held(
        hidden=matrices,
        tables=tables,
        frozen=head + setting.embedding - tables,
        low=head + compared.has_mass(setting) * setting.embedding,
        rounded=matrices + head,
        streams=streams(algorithm),
        largest=max(layer.hidden * layer.intermediate, streams(algorithm) * layer.hidden**2),
        head_gradient=algorithm.train_head * head,
        summed=table,
        kept_bytes=kept,
        passing_bytes=max(chunk_bytes(setting, compared), backward, rows.attending(setting, layer)),
    )


def streams(algorithm: Eagle3 | PEagle) -> int:
    """How many of the verifier's streams it reads."""
    return 3 if algorithm.aux_layers == "auto" else len(algorithm.aux_layers)


def at_tokens(algorithm: Eagle3 | PEagle, setting: Setting, *, norms_features: bool) -> float:
    """Bytes kept of every token: the fused streams, the first layer's input, and all layers but the last's queries."""
    low, layer = setting.product, setting.layer
    kept: float = streams(algorithm) * layer.hidden * (low + 2 * FLOAT * norms_features)
    kept += 4 * FLOAT * layer.hidden + 2 * layer.hidden * low + rows.keys_values(setting, layer) + rows.tables(layer)
    return kept + (algorithm.layers - 1) * rows.body(setting, layer)


def _at_chains(algorithm: Eagle3, setting: Setting, steps: int) -> float:
    low, layer, layers = setting.product, setting.layer, algorithm.layers
    body = 2 * layer.hidden * low + rows.body(setting, layer)
    later = (3 + 2 * algorithm.normalization.output) * FLOAT * layer.hidden + rows.tables(layer)
    later += layers * (body + rows.keys_values(setting, layer))
    own = layers * rows.earlier_steps(setting, layer, steps)
    return body + (steps - 1) * later + own + steps * 4 * FLOAT * layer.hidden + setting.state * layer.hidden
