"""The MLP speculator's training (`heads/objective.py`); the tokens between are the text's own."""

from speculators.algorithms.heads.objective import Objective

__all__ = ["Objective"]
