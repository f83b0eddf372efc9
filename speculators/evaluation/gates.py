"""Whether a run's figures pass its recipe's gates (the grammar is `recipe/gates.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speculators.errors import GateMissed
from speculators.recipe.gates import Judged, parse_gate


def judge(gates: Sequence[str], results: Mapping[str, Any]) -> tuple[Judged, ...]:
    """Each gate's text, the value of its left side and whether it passed, in the recipe's order."""
    return tuple(parse_gate(text).evaluate(results) for text in gates)


def require(gates: Sequence[str], results: Mapping[str, Any]) -> tuple[Judged, ...]:
    """As `judge`, but raises GateMissed, naming every missed gate and its value, if any did not pass."""
    judged = judge(gates, results)
    missed = [gate for gate in judged if not gate.passed]
    if missed:
        lines = [f"  {gate.text}  ({gate.why or f'it is {gate.value:.4g}'})" for gate in missed]
        raise GateMissed("\n".join([f"{len(missed)} of {len(judged)} gates missed:", *lines]))
    return judged
