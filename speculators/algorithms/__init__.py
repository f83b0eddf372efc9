"""The drafts: one folder an algorithm, its modules imported only when they are asked for."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal

from speculators.errors import UsageError
from speculators.recipe.outside import outside_algorithms

ALGORITHMS = {
    "eagle": "speculators.algorithms.eagle",
    "eagle3": "speculators.algorithms.eagle3",
    "hass": "speculators.algorithms.hass",
    "peagle": "speculators.algorithms.peagle",
    "dflash": "speculators.algorithms.dflash",
    "dspark": "speculators.algorithms.dspark",
    "dflash2": "speculators.algorithms.dflash2",
    "xpress": "speculators.algorithms.xpress",
    "medusa": "speculators.algorithms.medusa",
    "hydra": "speculators.algorithms.hydra",
    "mlp_speculator": "speculators.algorithms.mlp_speculator",
    "mtp": "speculators.algorithms.mtp",
    "draft_model": "speculators.algorithms.draft_model",
}
"""Name in a recipe's `algorithm.type` and in a checkpoint's `speculators_model_type` -> package with `Part`'s modules.

Algorithms of other packages join by an entry point (`recipe/outside.py`).
"""

Part = Literal["config", "layout", "network", "objective", "proposal"]
"""The modules of an algorithm's package, and what each has for the rest of the program.

* `config` (without torch): the class `Config` (`contracts.DraftConfig`); `verifier_layers(options, layers)`, the ids
  of the streams that the draft of a recipe's section reads of a verifier with so many layers; and
  `trained_parameters(options, facts)`, their number, for estimates, from facts about the verifier by name. Where a
  training begins with something outside of the recipe, `external(options)` gives the digests that pin it, by name.
  `TEXT_ONLY` says why documents with images are refused, where they are.
* `layout` (without torch): how a draft stands on disk (`contracts.Layout` lists what is in it).
* `network`: the class `Network` (`base.DraftNetwork`).
* `objective`: the class `Objective` (`base.Objective`).
* `proposal`: the class `Proposal` (`decoding/models.py`), made of a network and the type of its products.
"""


def names() -> tuple[str, ...]:
    """All algorithms, ours first."""
    return (*ALGORITHMS, *outside_algorithms())


def load(name: str, part: Part) -> ModuleType:
    """One module of an algorithm; raises UsageError for an algorithm that does not exist."""
    if name not in names():
        raise UsageError(f"there is no algorithm {name!r}; allowed: {', '.join(names())}")
    package = ALGORITHMS[name] if name in ALGORITHMS else outside_algorithms()[name].package
    return importlib.import_module(f"{package}.{part}")
