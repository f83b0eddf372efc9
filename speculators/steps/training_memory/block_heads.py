"""What DSpark, DFlash-2 and XPress have beside DFlash's layers (`algorithms/{dspark,dflash2,xpress}/objective.py`)."""

from __future__ import annotations

from speculators.recipe.shapes.dflash2 import DFlash2
from speculators.recipe.shapes.dspark import DSpark
from speculators.recipe.shapes.xpress import XPress
from speculators.steps.training_memory.blocks import Addition, held
from speculators.steps.training_memory.peak import Held
from speculators.steps.training_memory.setting import FLOAT, Setting


def dspark(algorithm: DSpark, setting: Setting) -> Held:
    """The Markov head, whose second factor is judged beside the verifier's head, and the confidence head."""
    hidden, rank = setting.layer.hidden, algorithm.markov_rank
    vocabulary = algorithm.draft_vocab_size or setting.vocabulary
    inner = {"vanilla": 0, "gated": hidden + rank, "rnn": 3 * (hidden + 2 * rank)}[algorithm.markov_head_type]
    memory = {"vanilla": 0, "gated": hidden + 4 * rank, "rnn": hidden + 11 * rank}[algorithm.markov_head_type]
    first, second = setting.vocabulary * rank, vocabulary * rank
    added = Addition(
        hidden=rank * inner,
        tables=first + second,
        summed=first,
        output=second,
        joined=vocabulary * (hidden + rank),
        rank=rank,
        block_bytes=algorithm.block_size * FLOAT * (hidden + rank + memory),
    )
    return held(algorithm, setting, added)


def dflash2(algorithm: DFlash2, setting: Setting) -> Held:
    """The convolutions around every sublayer, and the selector, which reads the head's rows of all candidates."""
    hidden, rank, low = setting.layer.hidden, algorithm.selector.rank, setting.product
    taps, groups = algorithm.convolution.taps, hidden // algorithm.convolution.group_size
    table, count = setting.vocabulary * rank, algorithm.selector.top_k
    candidates = count * (hidden * low + rank * FLOAT) + setting.is_rounded * 2 * hidden * low + 3 * rank * FLOAT
    added = Addition(
        hidden=algorithm.layers * 4 * taps * hidden * (1 + groups) + rank * hidden,
        tables=2 * table,
        summed=table,
        row_bytes=4 * FLOAT * hidden + 2 * hidden * low + 4 * taps * groups * FLOAT,
        chosen_bytes=algorithm.speculative_tokens * candidates,
    )
    return held(algorithm, setting, added)


def xpress(algorithm: XPress, setting: Setting) -> Held:
    """The refiner: fed true tokens, then its own choices, each time compared anew, as is the head alone."""
    hidden, rank, low = setting.layer.hidden, algorithm.refiner.rank, setting.product
    vocabulary, inner = algorithm.draft_vocab_size or setting.vocabulary, rank * algorithm.refiner.mlp_ratio
    rounds = algorithm.free_running.rounds if algorithm.free_running.weight else 0
    first, second = setting.vocabulary * rank, vocabulary * rank
    summary = setting.is_rounded * hidden * low
    refined = (5 * rank + 4 * inner) * low
    added = Addition(
        hidden=rank * (2 * hidden + 3 * rank + 3 * inner + algorithm.block_size**2),
        tables=first + second,
        summed=first,
        output=second,
        joined=vocabulary * (hidden + rank),
        rank=rank,
        block_bytes=algorithm.block_size * (2 * summary + (1 + rounds) * refined),
        readings=1 + rounds + bool(algorithm.base_weight),
    )
    return held(algorithm, setting, added)
