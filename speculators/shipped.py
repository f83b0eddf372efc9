"""Where the recipes and schemas that came with us lie: inside the wheel, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """The folder `recipes` or `schemas` as installed.

    Raises FileNotFoundError when the installation is broken.
    """
    for candidate in (PACKAGE / "shipped_files" / name, PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the shipped folder {name!r} is missing beside {PACKAGE}; reinstall speculators")
