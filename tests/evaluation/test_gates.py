"""Gates over a run's results."""

from __future__ import annotations

import pytest

from speculators.errors import GateMissed
from speculators.evaluation.gates import judge, require

RESULTS = {"acceptance": {"holdout": {"acceptance_length": 1.23}}}


def test_every_missed_gate_is_named_with_its_value() -> None:
    gates = ["acceptance.holdout.acceptance_length > 1", "acceptance.holdout.acceptance_length > 1.35", "benchmark > 1"]
    assert [gate.passed for gate in judge(gates, RESULTS)] == [True, False, False]
    with pytest.raises(GateMissed) as caught:
        require(gates, RESULTS)
    assert str(caught.value) == (
        "2 of 3 gates missed:\n"
        "  acceptance.holdout.acceptance_length > 1.35  (it is 1.23)\n"
        "  benchmark > 1  (the results have no benchmark; at 'benchmark' there is: acceptance)"
    )
    assert caught.value.exit_code == 3


def test_gates_that_pass_are_returned_with_their_values() -> None:
    (judged,) = require(["acceptance.holdout.acceptance_length >= 1.2"], RESULTS)
    assert judged.value == 1.23
