"""The drafts: one folder an algorithm, its modules imported only when they are asked for."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal

from speculators.errors import UsageError

ALGORITHMS = {
    "eagle3": "speculators.algorithms.eagle3",
}
"""Name in a recipe's `algorithm.type` -> package with the modules `config`, `network`, `objective` and `proposal`."""


def load(name: str, part: Literal["config", "network", "objective", "proposal"]) -> ModuleType:
    """One module of an algorithm; raises UsageError for an algorithm that does not exist."""
    if name not in ALGORITHMS:
        raise UsageError(f"there is no algorithm {name!r}; allowed: {', '.join(ALGORITHMS)}")
    return importlib.import_module(f"{ALGORITHMS[name]}.{part}")
