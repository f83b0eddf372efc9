"""P-EAGLE: all depths of a chain at once, deeper ones of fewer chains (`algorithms/peagle/objective.py`)."""

from __future__ import annotations

from dataclasses import replace

from speculators.recipe.shapes.peagle import PEagle
from speculators.steps.training_memory import eagle3, rows
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import FLOAT, Setting


def held(algorithm: PEagle, setting: Setting) -> Held:
    """What a training holds: EAGLE-3's first step, and a row for every deeper element."""
    load, layer, low = setting.load, setting.layer, setting.product
    hidden, layers, sampling = layer.hidden, algorithm.layers, algorithm.sampling
    shares = [max(sampling.ratio**depth, sampling.least) for depth in range(1, algorithm.depths)]
    deeper = sum(shares)
    first = 2 * hidden * low + rows.body(setting, layer) + setting.state * hidden
    element = 4 * FLOAT * hidden + 2 * hidden * low + rows.tables(layer)
    element += (layers - 1) * (FLOAT * hidden + hidden * low)  # what the other layers read is normed once
    element += layers * (rows.body(setting, layer) + rows.keys_values(setting, layer) + layer.queries * low)
    own = layers * rows.keys_values(setting, layer) * sum(depth * share for depth, share in enumerate(shares, 1))
    kept = load.tokens * eagle3.at_tokens(algorithm, setting, norms_features=algorithm.normalization.before_fc)
    kept += load.chains * (first + deeper * element + own + (1 + deeper) * 4 * FLOAT * hidden)
    # Below the last layer every token attends, and not only those with a chain.
    everywhere = (layers - 1) * load.tokens / load.chains
    kept += rows.probabilities(setting, layer) * (1 + layers * deeper + everywhere)
    judged = eagle3.judged(algorithm, setting, algorithm.depths)
    one = layer.attention() + layer.mlp  # what is kept of a layer goes before the next one's gradients come
    found = eagle3.with_weights(algorithm, setting, judged, kept, one, load.chains * max(1.0, deeper))
    return replace(found, last_bytes=kept / (layers + 1))
