"""HASS's training: `algorithms/eagle/objective.py` has the formula, of which EAGLE-1's is the first step."""

from speculators.algorithms.eagle.objective import Objective

__all__ = ["Objective"]
