"""Hydra (`schemas/algorithms/hydra.schema.json`)."""

from __future__ import annotations

from speculators.recipe.shapes.heads import ResidualHeadOptions


class Hydra(ResidualHeadOptions, frozen=True, tag="hydra", tag_field="type"):
    """A Hydra draft: its shape and its objective."""
