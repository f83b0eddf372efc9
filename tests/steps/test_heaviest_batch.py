"""Of the batches that a training will have, the one that takes most."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculators.data.tokens import Document, TokenOrigin, save_tokens
from speculators.steps.heaviest_batch import heaviest_batch


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    lengths = {"a": (10, 4), "b": (20, 3), "c": (8, 8), "held": (30, 30)}
    documents = [
        Document(name, [1] * length, [0] * (length - answer) + [1] * answer, is_holdout=name == "held")
        for name, (length, answer) in lengths.items()
    ]
    save_tokens(tmp_path, documents, TokenOrigin(300, (258,), "aa", "bb", 64))
    return tmp_path


def test_the_heaviest_batch_is_found_in_the_tokens(tokens: Path) -> None:
    assert heaviest_batch(tokens, 20, 0) == {
        "batch_tokens": 18.0,
        "batch_answers": 12.0,
        "batch_chains": 12.0,
        "batch_scores": 4 * 10 + 8 * 8,
        "batch_longest": 64.0,
    }


def test_no_document_has_more_chains_than_are_trained_of_it(tokens: Path) -> None:
    assert heaviest_batch(tokens, 20, 0, most_chains=5) == {
        "batch_tokens": 18.0,
        "batch_answers": 12.0,
        "batch_chains": 9.0,
        "batch_scores": 4 * 10 + 5 * 8,
        "batch_longest": 40.0,
    }
