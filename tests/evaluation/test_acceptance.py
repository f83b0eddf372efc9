"""Acceptance figures, on texts where each is known by counting."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speculators.evaluation.acceptance import Answer, Settings, check_lossless, decode, measure, round_figures

PROMPTS = [[1], [3, 4, 5], [20, 21], [7, 8, 9, 10]]


def _settings(**changes: Any) -> Settings:
    return Settings(**{"temperature": 0.0, "speculative_tokens": 3, "max_new_tokens": 13, "concurrency": 3, **changes})


def test_a_draft_that_is_always_right_commits_all_of_its_tokens_and_one(counting: Any, foresees: Any) -> None:
    figures, answers = measure(counting, foresees(lambda token: False), PROMPTS, _settings())
    assert [answer.tokens for answer in answers] == [list(range(p[-1] + 1, p[-1] + 14)) for p in PROMPTS]
    # The first token comes from the prompt; 12 more take 3 rounds of 3 proposals and the verifier's own.
    assert (figures["rounds"], figures["tokens"]) == (12, 48)
    assert figures["acceptance_length"] == 4.0
    assert figures["positions"] == [1.0, 1.0, 1.0]
    assert (figures["output_tokens"], figures["prompts"]) == (52, 4)
    assert answers[0].accepted == [False] + [True, True, True, False] * 3


def test_a_draft_that_is_never_right_commits_one_token_a_round(counting: Any, foresees: Any) -> None:
    figures, answers = measure(counting, foresees(lambda token: True), PROMPTS, _settings())
    assert figures["acceptance_length"] == 1.0
    # The last round has nothing left to propose: 11 of 12 rounds judge a proposal.
    assert (figures["positions"], figures["judged"]) == ([0.0, None, None], [44, 0, 0])
    assert not any(any(answer.accepted) for answer in answers)


def test_rates_are_conditional_on_the_proposals_before(counting: Any, foresees: Any) -> None:
    wrong_at_fives = foresees(lambda token: token % 5 == 0)
    figures, (answer,) = measure(counting, wrong_at_fives, [[0]], _settings(max_new_tokens=31))
    # From 1 on: 2 3 4|5, then 6 7 8|9, then |10 (its proposal was wrong), then 11 12 13|14, |15, ... up to 31.
    lengths = [len(commit.tokens) for commit in answer.commits[1:]]
    assert lengths == [4, 4, 1, 4, 1, 4, 1, 4, 1, 4, 1, 1]
    assert figures["acceptance_length"] == pytest.approx(30 / 12)
    assert figures["positions"] == [6 / 11, 1.0, 1.0]


def test_figures_of_no_rounds_are_none() -> None:
    assert round_figures([Answer()], 2) == {
        "acceptance_length": None,
        "positions": [None, None],
        "judged": [0, 0],
        "rounds": 0,
        "tokens": 0,
        "accepted_tokens": 0,
        "proposed_tokens": 0,
    }


def test_nothing_after_a_stop_token_is_counted(counting: Any, foresees: Any) -> None:
    settings = _settings(stop_ids=frozenset({4}))
    figures, (answer,) = measure(counting, foresees(lambda token: False), [[1]], settings)
    assert answer.tokens == [2, 3, 4]
    assert (figures["rounds"], figures["tokens"], figures["positions"]) == (1, 2, [1.0, 1.0, None])


def test_equality_with_plain_greedy_decoding_is_checked_token_for_token(counting: Any, foresees: Any) -> None:
    settings, told = _settings(), []
    _, answers = measure(counting, foresees(lambda token: token % 3 == 0), PROMPTS, settings, told.append)
    assert told[-1] == len(PROMPTS)
    figures, differences = check_lossless(counting, PROMPTS, answers, settings)
    assert (figures["lossless"], figures["equal_prompts"], differences) == (True, 4, [])
    answers[2].tokens[5] = 50
    answers[3].tokens.pop()
    figures, differences = check_lossless(counting, PROMPTS, answers, settings)
    assert (figures["lossless"], figures["equal_prompts"]) == (False, 2)
    first, second = differences
    assert (first.prompt, first.token, first.with_draft, first.without, first.gap) == (2, 5, 50, 27, 9.0)
    assert (second.prompt, second.token, second.with_draft, second.without, second.gap) == (3, 12, None, 23, None)


def test_answers_do_not_depend_on_how_many_are_decoded_at_once(counting: Any, foresees: Any) -> None:
    draft = foresees(lambda token: token % 4 == 0)
    alone = decode(counting, draft, PROMPTS, _settings(concurrency=1, temperature=1.0))
    together = decode(counting, draft, PROMPTS, _settings(concurrency=9, temperature=1.0))
    assert [answer.tokens for answer in alone] == [answer.tokens for answer in together]
    seeded = decode(counting, draft, PROMPTS, _settings(temperature=1.0, seed=1))
    assert [answer.tokens for answer in seeded] != [answer.tokens for answer in alone]
    assert torch.tensor(answer_lengths(alone)).tolist() == [13] * 4


def answer_lengths(answers: list[Answer]) -> list[int]:
    return [len(answer.tokens) for answer in answers]
