"""Algorithms of other packages, found by the entry points that those declare; nothing of them is imported here.

A package joins by `[project.entry-points."speculators.algorithms"]` with a line `name = "package.folder"`. The folder
holds what one of ours has: the modules that `speculators.algorithms.Part` names, a module `shape` with the class
`Options`, and `schema.json`, which are our `recipe/shapes/<name>.py` and `schemas/algorithms/<name>.schema.json`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speculators.errors import UsageError

GROUP = "speculators.algorithms"


@dataclass(frozen=True)
class OutsideAlgorithm:
    """An installed package that is an algorithm: its name to import, and its schema file."""

    package: str
    schema: Path

    def options(self) -> Any:
        """The shape of the recipe's section; imports the package's module `shape`."""
        return importlib.import_module(f"{self.package}.shape").Options


@cache
def outside_algorithms() -> dict[str, OutsideAlgorithm]:
    """Name in a recipe -> what is installed under it; raises UsageError for an entry point that leads nowhere."""
    found = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        spec = find_spec(point.value)
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        schema = Path(folders[0]) / "schema.json" if folders else None
        if schema is None or not schema.is_file():
            raise UsageError(
                f"the algorithm {point.name} of an installed package is not whole: {point.value} must be a package "
                "with a schema.json in it"
            )
        found[point.name] = OutsideAlgorithm(point.value, schema)
    return found
