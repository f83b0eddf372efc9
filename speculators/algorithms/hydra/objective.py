"""Hydra's training (`heads/objective.py`)."""

from speculators.algorithms.heads.objective import Objective

__all__ = ["Objective"]
