"""Medusa, Hydra and the MLP speculator: heads on gathered states (`algorithms/heads/objective.py`)."""

from __future__ import annotations

from speculators.recipe.shapes.heads import ResidualHeadOptions
from speculators.recipe.shapes.hydra import Hydra
from speculators.recipe.shapes.medusa import Medusa
from speculators.recipe.shapes.mlp_speculator import MLPSpeculator
from speculators.steps.training_memory.loss_chunks import Judged, chunk_bytes
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import FLOAT, Setting


def medusa(algorithm: Medusa, setting: Setting) -> Held:
    """Residual blocks on the verifier's state, which all heads share."""
    hidden = setting.layer.hidden
    blocks = algorithm.heads * algorithm.layers
    row = hidden * setting.product * (algorithm.heads if setting.is_rounded else 1)
    row += blocks * 2 * FLOAT * hidden + setting.is_rounded * (blocks - algorithm.heads) * hidden * setting.product
    return _residual(algorithm, setting, matrices=blocks * hidden**2, largest=hidden**2, row=row, shared=0)


def hydra(algorithm: Hydra, setting: Setting) -> Held:
    """The same, and each first block also reads the tokens before."""
    hidden, heads, low = setting.layer.hidden, algorithm.heads, setting.product
    read = sum(range(2, heads + 2)) * hidden
    matrices = 2 * read * hidden + heads * (algorithm.layers - 1) * hidden**2
    row = read * low * (2 if setting.is_rounded else 1)
    row += heads * algorithm.layers * 2 * FLOAT * hidden
    row += setting.is_rounded * heads * (algorithm.layers - 1) * hidden * low
    return _residual(
        algorithm,
        setting,
        matrices=matrices,
        largest=(heads + 1) * hidden**2,
        row=row,
        shared=setting.embedding,
    )


def mlp_speculator(algorithm: MLPSpeculator, setting: Setting) -> Held:
    """A state that every head hands on, with tables and output layers of its own width."""
    heads, low, hidden = algorithm.heads, setting.product, setting.layer.hidden
    inner = algorithm.inner_size or hidden
    copies = 1 if algorithm.tie_weights else heads
    projections = hidden * inner + (1 if algorithm.tie_weights else heads - 1) * inner**2
    head = copies * setting.vocabulary * inner
    judged = Judged(
        draft_vocabulary=setting.vocabulary,
        loss=algorithm.loss,
        steps=heads,
        is_renormalized=True,
        trained=inner,
    )
    # The sum before the norm, its normed self, the shifted one, what comes out, and the loss's gradient.
    row = hidden * low + heads * 5 * FLOAT * inner + setting.is_rounded * (heads - 1) * inner * low
    return Held(
        hidden=projections,
        tables=2 * head,
        low=setting.embedding,
        rounded=projections + head,
        largest=inner * max(hidden, inner),
        head_gradient=head,
        summed=head if algorithm.tie_weights else 0,
        kept_bytes=setting.load.chains * (row + setting.state * hidden),
        passing_bytes=max(chunk_bytes(setting, judged), FLOAT * (projections + head)),
    )


def _residual(
    algorithm: ResidualHeadOptions, setting: Setting, *, matrices: float, largest: float, row: float, shared: float
) -> Held:
    """Residual blocks of so many `matrices`, with `row` bytes kept of a chain."""
    hidden = setting.layer.hidden
    judged = _judged(algorithm, setting)
    head = (1 if algorithm.shared_head else algorithm.heads) * judged.draft_vocabulary * hidden
    trained = algorithm.train_head * head
    kept = row + algorithm.heads * FLOAT * hidden + setting.state * hidden
    return Held(
        hidden=matrices,
        tables=trained,
        frozen=head - trained,
        shared=shared,
        low=judged.draft_vocabulary * hidden + judged.has_mass(setting) * setting.embedding,
        rounded=matrices + head,
        largest=largest,
        head_gradient=trained,
        kept_bytes=setting.load.chains * kept,
        passing_bytes=max(chunk_bytes(setting, judged), FLOAT * matrices),
    )


def _judged(algorithm: ResidualHeadOptions, setting: Setting) -> Judged:
    hidden = setting.layer.hidden
    return Judged(
        draft_vocabulary=algorithm.draft_vocab_size or setting.vocabulary,
        loss=algorithm.loss,
        steps=algorithm.heads,
        is_renormalized=algorithm.teacher == "renormalized",
        trained=hidden * algorithm.train_head,
    )
