"""A small model of its own: plain causal passes over whole documents (`algorithms/draft_model/objective.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from speculators.algorithms.draft_model.config import DraftModelConfig
from speculators.algorithms.draft_model.source import ModelSource
from speculators.recipe.shapes.draft_model import DraftModel, RandomDraft
from speculators.steps.training_memory import rows
from speculators.steps.training_memory.loss_chunks import Judged, chunk_bytes
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import FLOAT, LayerSizes, Setting


@dataclass(frozen=True)
class _Model:
    layer: LayerSizes
    layers: int
    is_tied: bool


def held(algorithm: DraftModel, setting: Setting) -> Held | None:
    """What a training holds; None as long as the model's own config is not known."""
    model = _model(algorithm)
    if model is None:
        return None
    layer, load, low, layers = model.layer, setting.load, setting.product, model.layers
    hidden, one = layer.hidden, layer.attention() + layer.mlp
    table = setting.vocabulary * hidden
    judged = Judged(
        draft_vocabulary=setting.vocabulary,
        loss=algorithm.loss,
        steps=1,
        is_renormalized=True,
        trained=hidden,
    )
    read = FLOAT * hidden + hidden * low + rows.keys_values(setting, layer)
    token = layers * read + FLOAT * hidden + rows.tables(layer)
    token += (layers - 1) * (rows.body(setting, layer) + layer.queries * low)
    chain = hidden * low + rows.tables(layer) + rows.body(setting, layer) + 3 * FLOAT * hidden
    kept = load.tokens * token + load.chains * (chain + setting.state * setting.layer.hidden)
    kept += rows.probabilities(setting, layer)
    # What is kept of a layer goes before the next one's gradients come.
    backward = FLOAT * one + rows.backward_of_mlp(setting, layer.intermediate, load.chains)
    return Held(
        hidden=layers * one,
        tables=table * (1 if model.is_tied else 2),
        low=setting.embedding,
        rounded=layers * one + table,
        largest=hidden * max(layer.intermediate, layer.queries),
        head_gradient=table,
        summed=table if model.is_tied else 0.0,
        last_bytes=kept / (layers + 1),
        kept_bytes=kept,
        passing_bytes=max(chunk_bytes(setting, judged), backward, rows.attending(setting, layer)),
    )


def _model(algorithm: DraftModel) -> _Model | None:
    """The sizes of a random model as the recipe says them, of another as its config does, where that is known."""
    if algorithm.random is not None:
        shape = algorithm.random
        head_dim = shape.hidden_size // shape.attention_heads
        return _Model(_sizes(shape, head_dim), shape.layers, is_tied=False)
    known = ModelSource.of(str(algorithm.model), algorithm.revision).known_config()
    if known is None:
        return None
    config = DraftModelConfig.of_model(known, str(algorithm.model), known["vocab_size"])
    return _Model(_sizes(config, config.head_dim), config.layers, config.tie_word_embeddings)


def _sizes(shape: RandomDraft | DraftModelConfig, head_dim: int) -> LayerSizes:
    return LayerSizes(
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        heads=shape.attention_heads,
        key_value_heads=shape.key_value_heads,
        head_dim=head_dim,
    )
