"""The prompts that travel with the project: complete, varied, and a fixed quarter of each category held out."""

import json
from collections import Counter

import pytest

from speculators.shipped import shipped_folder

CATEGORIES = {
    "writing",
    "reasoning",
    "mathematics",
    "code",
    "extraction",
    "summarisation",
    "question_answering",
    "roleplay",
}


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, str]]:
    text = (shipped_folder("recipes") / "data" / "prompts.jsonl").read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_every_category_has_thirty_two_prompts(prompts):
    assert Counter(prompt["category"] for prompt in prompts) == dict.fromkeys(CATEGORIES, 32)


def test_exactly_a_quarter_of_each_category_is_held_out(prompts):
    held_out = Counter(prompt["category"] for prompt in prompts if prompt["split"] == "holdout")
    assert held_out == dict.fromkeys(CATEGORIES, 8)
    assert {prompt["split"] for prompt in prompts} == {"train", "holdout"}


def test_every_line_has_the_same_four_strings(prompts):
    for prompt in prompts:
        assert list(prompt) == ["id", "category", "prompt", "split"]
        assert all(isinstance(value, str) and value == value.strip() and value for value in prompt.values())


def test_no_prompt_comes_twice_even_with_other_spaces_or_capitals(prompts):
    assert len({prompt["id"] for prompt in prompts}) == len(prompts)
    assert len({" ".join(prompt["prompt"].lower().split()) for prompt in prompts}) == len(prompts)


def test_prompts_do_not_share_one_template(prompts):
    openings = Counter(" ".join(prompt["prompt"].lower().split()[:4]) for prompt in prompts)
    assert max(openings.values()) <= 6
    lengths = [len(prompt["prompt"]) for prompt in prompts]
    assert min(lengths) < 30
    assert max(lengths) > 300


def test_prompts_hold_no_control_characters(prompts):
    assert all(character == "\n" or character.isprintable() for prompt in prompts for character in prompt["prompt"])
