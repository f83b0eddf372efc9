"""Medusa (`schemas/algorithms/medusa.schema.json`)."""

from __future__ import annotations

from speculators.recipe.shapes.heads import ResidualHeadOptions


class Medusa(ResidualHeadOptions, frozen=True, tag="medusa", tag_field="type"):
    """A Medusa draft: its shape and its objective."""
