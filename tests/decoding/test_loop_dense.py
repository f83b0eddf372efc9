"""Decoding without a draft: the verifier's own text, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel

RunAll = Callable[[Decoder, list[Request]], list[list[Commit]]]
GreedyText = Callable[[list[int], int], list[int]]


def _text(commits: list[Commit]) -> list[int]:
    return [token for commit in commits for token in commit.tokens]


@pytest.mark.parametrize("slots", [1, 5])
def test_greedy_text_is_what_the_verifier_says_token_by_token(
    verifier: VerifierModel, prompts: list[list[int]], greedy_text: GreedyText, run_all: RunAll, slots: int
) -> None:
    lengths = [9, 4, 1, 14, 6, 2, 11, 8, 3, 5]
    decoder = Decoder(verifier, slots=slots, capacity=40)
    requests = [Request(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    for prompt, length, commits in zip(prompts, lengths, run_all(decoder, requests), strict=True):
        assert _text(commits) == greedy_text(prompt, length)
        assert [commit.finished for commit in commits] == [False] * (length - 1) + [True]
        assert commits[-1].reason == "length"
        assert all(commit.proposed == commit.accepted == 0 for commit in commits)
    assert decoder.is_idle
    assert decoder.free == slots


def test_a_stop_token_ends_the_text_and_is_kept(
    verifier: VerifierModel, prompts: list[list[int]], greedy_text: GreedyText, run_all: RunAll
) -> None:
    text = greedy_text(prompts[0], 12)
    stop = text[6]
    request = Request(prompts[0], 12, stop_ids=frozenset({stop}))
    (commits,) = run_all(Decoder(verifier, slots=2, capacity=40), [request])
    assert _text(commits) == text[: text.index(stop) + 1]
    assert commits[-1].reason == "stop"


def test_a_released_request_leaves_the_others_untouched(
    verifier: VerifierModel, prompts: list[list[int]], greedy_text: GreedyText
) -> None:
    decoder = Decoder(verifier, slots=3, capacity=40)
    slots = [decoder.admit(Request(prompt, 10)) for prompt in prompts[:3]]
    texts: dict[int, list[int]] = {slot: [] for slot in slots}
    for step in range(30):
        if step == 3:
            decoder.release(slots[0])
            assert decoder.free == 1
            slots.append(decoder.admit(Request(prompts[3], 10)))
            texts[slots[3]] = []
        if step == 4:
            decoder.release(slots[0])  # twice is no error, and never hits the slot's next tenant
            decoder.release(12345)
        for commit in decoder.step():
            texts[commit.slot] += commit.tokens
    assert [texts[slot] for slot in slots[1:]] == [greedy_text(prompt, 10) for prompt in prompts[1:4]]
    assert texts[slots[0]] == greedy_text(prompts[0], 10)[: len(texts[slots[0]])]
    assert len(texts[slots[0]]) < 10


def test_a_request_may_be_released_while_it_waits(verifier: VerifierModel) -> None:
    decoder = Decoder(verifier, slots=1, capacity=8)
    decoder.release(decoder.admit(Request([1, 2], 3)))
    assert decoder.is_idle
    assert decoder.step() == []


def test_too_many_requests_and_too_long_ones_are_refused_in_words(verifier: VerifierModel) -> None:
    decoder = Decoder(verifier, slots=1, capacity=8)
    with pytest.raises(ValueError, match=r"needs 9 tokens \(4 of prompt, 5 to write\), more than the capacity of 8"):
        decoder.admit(Request([1, 2, 3, 4], 5))
    decoder.admit(Request([1, 2, 3, 4], 4))
    with pytest.raises(ValueError, match="all 1 slots are taken"):
        decoder.admit(Request([1], 1))


@pytest.mark.parametrize(
    ("field", "value"), [("max_new_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_k", 0), ("prompt_ids", [])]
)
def test_an_impossible_request_names_the_field(field: str, value: object) -> None:
    good: dict[str, object] = {"prompt_ids": [1], "max_new_tokens": 1}
    with pytest.raises(ValueError, match="prompt" if field == "prompt_ids" else field):
        Request(**{**good, field: value})  # type: ignore[arg-type]


def test_sampled_text_depends_on_the_seed_and_not_on_the_batch(
    verifier: VerifierModel, prompts: list[list[int]], run_all: RunAll
) -> None:
    def request(number: int, seed: int) -> Request:
        top_k = 20 if number % 3 == 0 else None
        return Request(prompts[number], 8, temperature=0.9, top_p=0.95 if number % 2 else 1.0, top_k=top_k, seed=seed)

    requests = [request(number, number) for number in range(len(prompts))]
    together = [_text(commits) for commits in run_all(Decoder(verifier, slots=4, capacity=40), requests)]
    for number, wanted in enumerate(together):
        (alone,) = run_all(Decoder(verifier, slots=1, capacity=40), [requests[number]])
        assert _text(alone) == wanted
    other = [request(number, number + 100) for number in range(len(prompts))]
    again = [_text(commits) for commits in run_all(Decoder(verifier, slots=4, capacity=40), other)]
    assert sum(a != b for a, b in zip(together, again, strict=True)) > len(prompts) // 2
