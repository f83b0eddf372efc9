"""How a HASS draft stands on disk: as EAGLE-1's, under another name."""

from __future__ import annotations

from speculators.algorithms.eagle.layout import IS_SERVED, VLLM_METHOD, completed, problems, refuses, tensors, written

__all__ = ["ARCHITECTURE", "IS_SERVED", "VLLM_METHOD", "completed", "problems", "refuses", "tensors", "written"]

ARCHITECTURE = "HassDraftModel"
