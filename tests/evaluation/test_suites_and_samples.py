"""Which prompts are asked, and how answers are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from speculators.data.conversations import Conversation, Message, write_conversations
from speculators.decoding.request import Commit
from speculators.errors import UsageError
from speculators.evaluation.acceptance import Answer
from speculators.evaluation.samples import sample, spread
from speculators.evaluation.suites import suite
from speculators.recipe.shapes.eval import SUITES


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    talks = [
        Conversation(
            f"p{n}",
            (Message("user", f"question {n}"), Message("assistant", "an answer that is not asked for")),
            "holdout" if n % 2 else "train",
            None,
            "test",
        )
        for n in range(20)
    ]
    write_conversations(tmp_path / "prompts.jsonl", talks)
    return tmp_path


def test_holdout_is_exactly_the_prompts_kept_out_of_training(prompts: Path) -> None:
    found = suite("holdout", prompts)
    assert [one.id for one in found] == [f"p{n}" for n in range(1, 20, 2)]
    assert all(one.messages[-1].role == "user" for one in found)
    assert suite("holdout", prompts, 100) == found


def test_every_suite_that_a_recipe_may_name_has_its_prompts(prompts: Path) -> None:
    assert all(suite(name, prompts) for name in SUITES)


def test_fewer_prompts_are_taken_at_even_distances(prompts: Path) -> None:
    assert [one.id for one in suite("holdout", prompts, 3)] == ["p1", "p7", "p13"]


def test_an_unknown_or_empty_suite_says_what_to_do(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no suite 'mtbench' in eval.acceptance.suites; allowed: holdout"):
        suite("mtbench", prompts)
    empty = tmp_path / "empty"
    empty.mkdir()
    write_conversations(empty / "prompts.jsonl", [Conversation("a", (Message("user", "x"),), "train", None, "t")])
    with pytest.raises(UsageError, match=r"set data.holdout above 0"):
        suite("holdout", empty)


def test_a_sample_has_one_piece_a_token_and_characters_are_never_cut() -> None:
    letters = {1: b"Hi ", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b"!"}

    def decode(ids: Sequence[int]) -> str:
        return b"".join(letters[token] for token in ids).decode("utf-8", errors="replace")

    answer = Answer()
    answer.add(Commit(0, [1], 0, 0, finished=False, reason=None))
    answer.add(Commit(0, [2, 3, 4], 2, 3, finished=True, reason="length"))
    assert sample("Say hi", answer, decode) == {
        "prompt": "Say hi",
        "pieces": [
            {"text": "Hi ", "accepted": False},
            {"text": "", "accepted": True},
            {"text": "é", "accepted": True},
            {"text": "!", "accepted": False},
        ],
    }


def test_samples_are_spread_over_all_prompts() -> None:
    assert spread(3, 6) == [0, 1, 2]
    assert spread(12, 4) == [0, 3, 6, 9]
