"""The most memory that training a draft takes, counted tensor by tensor from sizes alone.

What autograd keeps of each operation follows from `algorithms/*/objective.py`; tests count the tensors of real steps
and hold this to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from speculators.recipe.shapes.recipe import Algorithm
from speculators.recipe.shapes.train import Train
from speculators.steps.training_memory import block_heads, blocks, draft_model, eagle, eagle3, heads, mtp, peagle
from speculators.steps.training_memory.peak import Held, most_bytes
from speculators.steps.training_memory.setting import Setting

_HELD: Mapping[str, Callable[[Any, Setting], Held | None]] = {
    "eagle3": eagle3.held,
    "eagle": eagle.held,
    "hass": eagle.held,
    "peagle": peagle.held,
    "dflash": blocks.dflash,
    "dspark": block_heads.dspark,
    "dflash2": block_heads.dflash2,
    "xpress": block_heads.xpress,
    "medusa": heads.medusa,
    "hydra": heads.hydra,
    "mlp_speculator": heads.mlp_speculator,
    "mtp": mtp.held,
    "draft_model": draft_model.held,
}


def estimated(
    algorithm: Algorithm, train: Train, facts: Mapping[str, float], *, product: int, on_gpu: bool = False
) -> int | None:
    """Bytes of tensors, from a recipe and what is known while planning.

    None as long as the verifier, or a model that is to draft, is not known, and for an algorithm of another package.
    `product` is the bytes of an element of products.
    """
    count = _HELD.get(algorithm.name)
    if count is None or "hidden_size" not in facts or "vocab_size" not in facts:
        return None
    chains = algorithm.chains_per_document
    setting = Setting.of(train, facts, product=product, on_gpu=on_gpu, most_chains=chains)
    held = count(algorithm, setting)
    return None if held is None else most_bytes(setting, held)
