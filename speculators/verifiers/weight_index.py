"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

from speculators.errors import UsageError

INDEX = "model.safetensors.index.json"
"""Its name beside safetensors, as transformers writes it."""


def read_index(file: Path) -> dict[str, str]:
    """Tensor -> name of the file that holds it, below the index's own folder.

    Raises UsageError for an index that is broken, or names a file outside of that folder: it may be a stranger's.
    """
    try:
        where = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except ValueError as error:
        raise UsageError(f"{file} is not valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file} has no `weight_map`: it does not say which file holds which tensor") from error
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UsageError(f"{file}: its `weight_map` should give the name of a file for each tensor")
    for name in set(where.values()):
        if any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))):
            raise UsageError(f"{file}: its `weight_map` names {name}, which is not in this folder")
    return where
