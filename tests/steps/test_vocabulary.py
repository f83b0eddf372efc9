"""The vocabulary step counts where training takes its loss, and only in train."""

import json

import pytest
import torch

from speculators.data.tokens import Document, TokenOrigin, save_tokens
from speculators.data.vocabulary import DraftVocabulary, verifier_ids
from speculators.errors import UsageError
from speculators.steps.vocabulary import STEP


@pytest.fixture
def tokens(tmp_path):
    artifact = tmp_path / "made-tokens"
    artifact.mkdir()
    origin = TokenOrigin(12, (10, 11), "aa", "bb", 64)
    documents = [
        Document("a", [9, 9, 9, 1, 1, 2, 11], [0, 0, 0, 1, 1, 1, 1], is_holdout=False),
        Document("b", [3, 3, 3, 1, 11], [1, 1, 1, 1, 1], is_holdout=True),
    ]
    save_tokens(artifact, documents, origin)
    return artifact


def test_only_the_loss_positions_of_train_are_counted(make_recipe, run_step, tokens):
    output, told = run_step(STEP, make_recipe(algorithm__draft_vocab_size=4), tokens=tokens)
    vocabulary = DraftVocabulary.open(output)
    assert verifier_ids(vocabulary.d2t).tolist() == [1, 2, 10, 11]
    assert torch.equal(vocabulary.t2d.nonzero().flatten(), torch.tensor([1, 2, 10, 11]))
    assert (vocabulary.coverage.train, vocabulary.coverage.holdout) == (1.0, pytest.approx(2 / 5))
    assert told.metrics == [{"coverage": 1.0, "coverage_holdout": pytest.approx(2 / 5)}]


def test_no_size_means_the_verifiers_whole_vocabulary(make_recipe, run_step, tokens):
    output, _ = run_step(STEP, make_recipe(algorithm__draft_vocab_size=None), tokens=tokens)
    record = json.loads((output / "vocabulary.json").read_text())
    assert record == {"draft_vocab_size": 12, "verifier_vocab_size": 12, "coverage": 1.0, "coverage_holdout": 1.0}
    assert [file.name for file in output.iterdir()] == ["vocabulary.json"]


def test_a_vocabulary_larger_than_the_verifiers_is_refused(make_recipe, run_step, tokens):
    with pytest.raises(UsageError, match="is 13, but the verifier has 12 tokens"):
        run_step(STEP, make_recipe(algorithm__draft_vocab_size=13), tokens=tokens)
