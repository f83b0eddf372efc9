"""A point is measured again only where GuideLLM did not hear of every answer."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from speculators.errors import StepError
from speculators.evaluation import served_points
from speculators.evaluation.guidellm import AnswersUnheard, Load
from speculators.recipe.shapes.eval import Concurrent


@pytest.fixture
def attempts(monkeypatch):
    """The outcomes of GuideLLM's next runs, each an error or None for figures; gives how many were made."""

    @contextmanager
    def nothing_served(*_):
        yield "http://server"

    monkeypatch.setattr(served_points, "serving", nothing_served)
    monkeypatch.setattr(served_points, "warm_up", lambda *_: None)
    monkeypatch.setattr(served_points, "read_metrics", lambda _: "")

    def run(outcomes, folder):
        left = list(outcomes)

        def measure(*_):
            if outcome := left.pop(0):
                raise outcome
            return {"speed": 1.0}

        monkeypatch.setattr(served_points, "measure", measure)
        profile = Concurrent(levels=(1,))
        try:
            served_points.measure_served(None, None, profile, Load(1, 1, ("a",)), folder, folder, lambda *_: None)
        finally:
            made.append(len(outcomes) - len(left))

    made: list[int] = []
    return run, made


def test_unheard_answers_are_measured_again_and_then_given_up(attempts, tmp_path):
    run, made = attempts
    run([AnswersUnheard("a"), AnswersUnheard("b"), None], tmp_path)
    with pytest.raises(AnswersUnheard, match="c"):
        run([AnswersUnheard("a"), AnswersUnheard("b"), AnswersUnheard("c"), None], tmp_path)
    assert made == [3, 3]


def test_another_failure_is_final(attempts, tmp_path):
    run, made = attempts
    with pytest.raises(StepError, match="broken"):
        run([StepError("broken"), None], tmp_path)
    assert made == [1]
