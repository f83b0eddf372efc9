"""Continuous batches write what the model alone would write, every answer once, within the memory that is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.decoding.loop import Decoder
from speculators.decoding.request import Request
from speculators.engines import generation
from speculators.engines.base import Answer
from speculators.engines.generation import generate
from speculators.engines.transformers import VerifierModel

LENGTHS = (1, 3, 17, 17, 40, 2, 9, 1, 26, 5, 12)


@pytest.fixture(scope="module")
def verifier(llama: Path) -> VerifierModel:
    return VerifierModel.load(llama, "float32")


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MOST_SLOTS", 4)


def prompt(length: int, seed: int) -> list[int]:
    drawn: list[int] = torch.randint(3, 199, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


def by_number(answers: Any) -> list[Answer]:
    found = sorted(answers, key=lambda answer: answer.number)
    assert [answer.number for answer in found] == list(range(len(found)))
    return found


@torch.no_grad()
def alone(reference: Any, ids: list[int], limit: int, stops: set[int]) -> tuple[list[int], str]:
    """Greedy text by transformers' own generate, one prompt at a time."""
    written = reference.generate(
        torch.tensor([ids]), max_new_tokens=limit, do_sample=False, eos_token_id=sorted(stops) or None, pad_token_id=0
    )[0, len(ids) :].tolist()
    return written, "stop" if written[-1] in stops else "length"


@pytest.mark.usefixtures("few_slots")
def test_greedy_texts_are_those_of_transformers_generate(verifier: VerifierModel, reference: Any) -> None:
    """More requests than slots, prompts from one token on, limits and stop tokens of all kinds."""
    stops = set(range(3, 199, 9))
    requests = [
        Request(prompt(length, 100 + place), 3 + 4 * (place % 4), stop_ids=frozenset(stops if place % 2 else ()))
        for place, length in enumerate(LENGTHS)
    ]
    found = by_number(generate(verifier, requests, batch_tokens=4096))
    for request, answer in zip(requests, found, strict=True):
        wanted = alone(reference, list(request.prompt_ids), request.max_new_tokens, set(request.stop_ids))
        assert (answer.token_ids, answer.reason) == wanted
    assert {answer.reason for answer in found} == {"stop", "length"}


@pytest.mark.usefixtures("few_slots")
def test_a_sampled_answer_depends_on_its_own_seed_alone(verifier: VerifierModel) -> None:
    requests = [
        Request(prompt(length, place), 8, temperature=0.9, top_p=0.8, seed=place)
        for place, length in enumerate(LENGTHS)
    ]
    together = by_number(generate(verifier, requests, batch_tokens=4096))
    backwards = by_number(generate(verifier, requests[::-1], batch_tokens=4096))[::-1]
    for request, one, other in zip(requests, together, backwards, strict=True):
        (single,) = generate(verifier, [request], batch_tokens=4096)
        assert one.token_ids == other.token_ids == single.token_ids


def test_batches_hold_no_more_positions_than_allowed(verifier: VerifierModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def watched(verifier: VerifierModel, *, slots: int, capacity: int) -> Decoder:
        sizes.append((slots, capacity))
        return Decoder(verifier, slots=slots, capacity=capacity)

    monkeypatch.setattr(generation, "Decoder", watched)
    monkeypatch.setattr(generation, "SMALLEST_BATCH", 16)
    requests = [Request(prompt(length, place), 4) for place, length in enumerate((40, 3, 5, 9, 4, 6, 60, 7))]
    assert len(list(generate(verifier, requests, batch_tokens=50))) == len(requests)
    assert all(slots * capacity <= 50 or slots == 1 for slots, capacity in sizes)
    assert max(capacity for _, capacity in sizes) == 64
    assert min(capacity for _, capacity in sizes) < 16, "short requests do not pay for long ones"


def test_nothing_asked_is_nothing_answered(verifier: VerifierModel) -> None:
    assert list(generate(verifier, [], batch_tokens=100)) == []
