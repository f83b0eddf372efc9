"""A verifier's own head: one layer along chains, the first step at every token (`algorithms/mtp/objective.py`).

What config.json does not tell of a head (biases, gates of attention, norms of its heads) is left out: up to a tenth.
"""

from __future__ import annotations

from dataclasses import replace

from speculators.recipe.shapes.mtp import Mtp
from speculators.steps.training_memory import rows
from speculators.steps.training_memory.loss_chunks import Judged, chunk_bytes
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import FLOAT, LayerSizes, Setting
from speculators.verifiers.latent import Latent
from speculators.verifiers.mixture import Mixture


def held(algorithm: Mtp, setting: Setting) -> Held:
    """What a training holds. The head, over the whole vocabulary, is the verifier's and is not trained."""
    load, steps, low = setting.load, algorithm.steps, setting.product
    layer = setting.layer if setting.latent is None else _written_out(setting.layer, setting.latent)
    hidden = layer.hidden
    judged = Judged(draft_vocabulary=setting.vocabulary, loss=algorithm.loss, steps=steps, is_renormalized=True)
    read = 4 * FLOAT * hidden + 3 * hidden * low + rows.keys_values(setting, layer) + rows.tables(layer)
    body = rows.body(setting, layer)
    if setting.mixture is not None:
        body += _experts(setting, setting.mixture) - rows.mlp(setting, hidden, layer.intermediate)
    if setting.latent is not None:
        read += setting.latent.key_value_rank * (2 * FLOAT + low)
        body += setting.latent.query_rank * (2 * FLOAT + low) + setting.latent.heads * setting.latent.value_dim * low
    chain = hidden * low + rows.tables(layer) + body + (steps - 1) * (read + 2 * FLOAT * hidden + body)
    chain += rows.earlier_steps(setting, layer, steps) + steps * 4 * FLOAT * hidden + setting.state * hidden
    kept = load.tokens * read + load.chains * chain + steps * rows.probabilities(setting, layer)
    matrices = 2 * hidden**2 + _attention(layer, setting.latent) + _mlp(layer, setting.mixture)
    backward = FLOAT * matrices + rows.backward_of_mlp(setting, _widest(layer, setting.mixture), load.chains)
    return Held(
        hidden=matrices,
        shared=setting.embedding * (1 if setting.is_tied else 2),
        low=setting.is_rounded * 2 * setting.embedding,
        rounded=matrices,
        largest=hidden * max(_widest(layer, setting.mixture), 2 * hidden),
        kept_bytes=kept,
        passing_bytes=max(chunk_bytes(setting, judged), backward, rows.attending(setting, layer)),
    )


def _written_out(layer: LayerSizes, latent: Latent) -> LayerSizes:
    """Latent attention as it is computed: keys and values of every head."""
    return replace(layer, heads=latent.heads, key_value_heads=latent.heads, head_dim=latent.width)


def _attention(layer: LayerSizes, latent: Latent | None) -> int:
    """Parameters."""
    if latent is None:
        return layer.attention()
    asking = latent.heads * latent.key_dim
    queries = latent.query_rank * (layer.hidden + asking) if latent.query_rank else layer.hidden * asking
    keys_values = layer.hidden * (latent.key_value_rank + latent.turned_dim)
    keys_values += latent.key_value_rank * latent.heads * (latent.plain_dim + latent.value_dim)
    return queries + keys_values + latent.heads * latent.value_dim * layer.hidden


def _mlp(layer: LayerSizes, mixture: Mixture | None) -> int:
    """Parameters."""
    if mixture is None:
        return layer.mlp
    experts = mixture.count * mixture.intermediate_size + mixture.shared_size
    return layer.hidden * (3 * experts + mixture.count)


def _widest(layer: LayerSizes, mixture: Mixture | None) -> int:
    """Inner channels of the largest MLP that has all rows."""
    return layer.intermediate if mixture is None else max(mixture.intermediate_size, mixture.shared_size)


def _experts(setting: Setting, mixture: Mixture) -> float:
    """Bytes that a row's experts keep: the router, each expert's part with its result, and the shared one's."""
    hidden, low = setting.layer.hidden, setting.product
    each = rows.mlp(setting, hidden, mixture.intermediate_size) + hidden * low
    shared = rows.mlp(setting, hidden, mixture.shared_size) + hidden * low if mixture.shared_size else 0.0
    return FLOAT * (hidden + 2 * mixture.count) + mixture.per_token * each + shared
