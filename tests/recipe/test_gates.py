"""The grammar of gates."""

from __future__ import annotations

import pytest

from speculators.recipe.gates import parse_gate

FIGURES = {
    "acceptance": {"holdout": {"acceptance_length": 1.5, "T1.0": {"acceptance_length": 1.2}, "lossless": True}},
    "benchmark": {"dense": {"output_tokens_per_second": 40}, "speculator": {"output_tokens_per_second": 50}},
    "steps": {"benchmark-dense": {"seconds": 30.5}},
}


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("acceptance.holdout.acceptance_length >= 1.35", 1.5, True),
        ("acceptance.holdout.acceptance_length > 1.5", 1.5, False),
        ("acceptance.holdout.T1.0.acceptance_length<1.3", 1.2, True),
        ("benchmark.speculator.output_tokens_per_second / benchmark.dense.output_tokens_per_second > 1.2", 1.25, True),
        ("steps.benchmark-dense.seconds <= 3e1", 30.5, False),
        ("2 + 3 * 4 - (1 - 3) / 2 == 15", 15, True),
        ("10 - 2 - 3 == 5", 5, True),
        ("-2 != -2", -2, False),
        ("1 < benchmark.dense.output_tokens_per_second * 2", 1, True),
    ],
)
def test_gates_are_arithmetic_on_figures_and_one_comparison(text: str, value: float, passed: bool) -> None:
    judged = parse_gate(text).evaluate(FIGURES)
    assert judged.value == pytest.approx(value)
    assert judged.passed is passed
    assert judged.text == text


def test_the_figures_a_gate_uses_are_named() -> None:
    assert parse_gate("a.b / c-d.e > a.b + 1").names == ("a.b", "c-d.e")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("acceptance.held > 1", "the results have no acceptance.held; at 'held' there is: holdout"),
        ("acceptance.holdout > 1", "acceptance.holdout is no number but dict"),
        ("acceptance.holdout.lossless > 0", "acceptance.holdout.lossless is no number but bool"),
        ("1 / 0 > 1", "division by zero"),
    ],
)
def test_a_gate_on_a_figure_that_is_not_there_fails_and_says_why(text: str, why: str) -> None:
    judged = parse_gate(text).evaluate(FIGURES)
    assert (judged.value, judged.passed) == (None, False)
    assert why in judged.why


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "'a', column 2: a gate needs one comparison, <, <=, >, >=, == or !="),
        ("a > 1 > 2", "'a > 1 > 2', column 7: nothing more is expected here"),
        ("a = 1", "'a = 1', column 3: '=' has no meaning in a gate"),
        ("a >", "'a >', column 4: a number or the name of a figure is expected"),
        ("", "'', column 1: a number or the name of a figure is expected"),
        ("(a > 1", "'(a > 1', column 4: a parenthesis is not closed"),
        ("a and b", "'a and b', column 3: a gate needs one comparison, <, <=, >, >=, == or !="),
        ("__import__('os') > 1", "'__import__('os') > 1', column 12"),
        ("1.2.3 > 1", "column 1"),
    ],
)
def test_a_malformed_gate_says_where(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_gate(text)
    assert message.strip("'") in str(caught.value).replace('"', "'")
