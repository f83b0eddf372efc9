"""DFlash: blocks at anchors, whose layers also read keys and values of every token.

(`algorithms/dflash/objective.py`, `layers/block_attention.py`)
"""

from __future__ import annotations

from dataclasses import dataclass

from speculators.recipe.shapes.blocks import BlockOptions, ReducedBlockOptions
from speculators.recipe.shapes.dflash import DFlash
from speculators.steps.training_memory import rows
from speculators.steps.training_memory.loss_chunks import Judged, chunk_bytes
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import BLOCK_SCORES, FLOAT, Setting


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What a draft has beside DFlash's layers, in elements where a name does not say bytes."""

    hidden: float = 0.0
    tables: float = 0.0
    summed: float = 0.0
    output: float = 0.0
    """Of the tables, the one whose gradient the loss makes."""
    joined: float = 0.0
    """What is put together of head and output for each batch, in the type of products."""
    rank: int = 0
    """Channels that the head reads beside the stream's."""
    row_bytes: float = 0.0
    """Kept in every layer of every place of a block."""
    block_bytes: float = 0.0
    """Kept of every block after the layers, before the loss."""
    chosen_bytes: float = 0.0
    """The same after the loss."""
    readings: int = 1
    """How often the loss compares the same steps."""


NOTHING = Addition()


def dflash(algorithm: DFlash, setting: Setting) -> Held:
    """What a training of a DFlash draft holds."""
    return held(algorithm, setting, NOTHING)


def held(algorithm: BlockOptions, setting: Setting, added: Addition) -> Held:
    """What a training holds, with what a draft adds to DFlash."""
    layer, load, layers = setting.layer, setting.load, algorithm.layers
    streams = layers if algorithm.aux_layers == "auto" else len(algorithm.aux_layers)
    matrices = streams * layer.hidden**2 + layers * (layer.attention() + layer.mlp) + added.hidden
    judged = _judged(algorithm, setting, added)
    head, is_reduced = judged.draft_vocabulary * layer.hidden, judged.draft_vocabulary < setting.vocabulary
    place = layers * (_in_layer(setting) + added.row_bytes) + rows.tables(layer) + 2 * FLOAT * layer.hidden
    kept = load.tokens * (_at_tokens(setting, streams, layers) + rows.tables(layer))
    kept += load.chains * algorithm.block_size * place + layers * _probabilities(algorithm, setting)
    # Draft and teacher each have a copy of the head, but of a whole one in float32, which is the verifier's own.
    copies = setting.is_rounded + (setting.is_rounded or is_reduced)
    return Held(
        hidden=matrices,
        tables=added.tables,
        frozen=is_reduced * head,
        shared=setting.embedding * (1 if is_reduced or setting.is_tied else 2),
        low=copies * head + judged.has_mass(setting) * setting.embedding,
        rounded=matrices + is_reduced * head,
        streams=streams,
        largest=max(layer.hidden * layer.intermediate, streams * layer.hidden**2),
        head_gradient=added.output,
        last_bytes=kept / (layers + 1),
        kept_bytes=kept,
        passing_bytes=max(_judging(algorithm, setting, added, judged), _going_back(algorithm, setting, added)),
    )


def _judging(algorithm: BlockOptions, setting: Setting, added: Addition, judged: Judged) -> float:
    """Bytes while the loss works off a chunk, or a selector chooses: with what the heads read of every block."""
    load, hidden = setting.load, setting.layer.hidden
    compared = load.chains * algorithm.speculative_tokens
    read = compared * 2 * FLOAT * (hidden + added.rank) * added.readings + load.chains * added.block_bytes
    read += min(load.answers, compared) * setting.state * hidden
    choosing = load.chains * added.chosen_bytes + FLOAT * (added.tables - added.output + 2 * added.summed)
    return read + max(chunk_bytes(setting, judged) + setting.product * added.joined, choosing)


def _going_back(algorithm: BlockOptions, setting: Setting, added: Addition) -> float:
    """Bytes in the backward pass of a layer: those of the stream's gradient, of its own, and of the tables'.

    What is kept of a layer goes before the next one's gradients come. While it attends, nothing is kept of its MLP.
    """
    layer, places = setting.layer, setting.load.chains * algorithm.block_size
    gradients = FLOAT * (layer.attention() + layer.mlp + added.hidden + added.tables - added.output)
    scores = min(BLOCK_SCORES, layer.heads * algorithm.block_size * setting.load.longest)
    attending = 3 * scores * setting.product - places * rows.mlp(setting, layer.hidden, layer.intermediate)
    multiplying = gradients + rows.backward_of_mlp(setting, layer.intermediate, places)
    return places * FLOAT * layer.hidden + max(multiplying, attending)


def _judged(algorithm: BlockOptions, setting: Setting, added: Addition) -> Judged:
    vocabulary = algorithm.draft_vocab_size if isinstance(algorithm, ReducedBlockOptions) else None
    return Judged(
        draft_vocabulary=vocabulary or setting.vocabulary,
        loss=algorithm.loss,
        steps=algorithm.speculative_tokens * added.readings,
        is_renormalized=algorithm.is_renormalized,
        trained=added.rank,
    )


def _at_tokens(setting: Setting, streams: int, layers: int) -> float:
    """Bytes kept of every token: its streams, the context made of them, and keys and values for every layer."""
    layer, low = setting.layer, setting.product
    context = streams * layer.hidden * low + 3 * FLOAT * layer.hidden
    if setting.is_rounded:  # for each projection anew, and the context itself is not needed again
        context += layers * 2 * layer.hidden * low - FLOAT * layer.hidden
    return context + layers * (2 * FLOAT * layer.keys + rows.keys_values(setting, layer))


def _in_layer(setting: Setting) -> float:
    """Bytes kept of one place of a block in one layer.

    Queries and keys are kept before their norm and after it, and queries once more for the context and for the block.
    """
    layer, low = setting.layer, setting.product
    read = FLOAT * layer.hidden + (3 if setting.is_rounded else 1) * layer.hidden * low
    attention = 2 * FLOAT * (layer.queries + layer.keys) + 3 * layer.queries * low + rows.keys_values(setting, layer)
    return read + attention + 3 * FLOAT * layer.hidden + rows.mlp(setting, layer.hidden, layer.intermediate)


def _probabilities(algorithm: BlockOptions, setting: Setting) -> float:
    """Bytes of one layer's probabilities, where they are kept: the context's, the block's and the latter once more."""
    layer, load, width = setting.layer, setting.load, algorithm.block_size
    if layer.heads * width * load.longest > BLOCK_SCORES:
        return 0.0
    return layer.heads * width * (load.scores + load.chains * 2 * width) * setting.product
