"""What every recipe shape has in common: frozen, keyword-only, strict, and without defaults.

Defaults, units and descriptions live in `schemas/` alone; a test proves that shapes and schemas have the same fields.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Dtype = Literal["float32", "bfloat16", "float16"]


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all recipe shapes."""
