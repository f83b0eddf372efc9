"""The draft's vocabulary holds the most frequent tokens, and both maps lead there and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speculators.data.vocabulary import (
    Coverage,
    DraftVocabulary,
    covered,
    draft_ids,
    membership,
    most_frequent,
    offsets,
    verifier_ids,
)
from speculators.errors import UsageError


def test_the_most_frequent_are_kept_and_ties_go_to_the_smaller_id():
    counts = torch.tensor([5, 0, 7, 7, 1, 1, 1])
    assert most_frequent(counts, 4).tolist() == [0, 2, 3, 4]


def test_special_tokens_are_always_in():
    counts = torch.tensor([5, 0, 7, 7, 1, 1, 0])
    assert most_frequent(counts, 3, always=(6, 1)).tolist() == [1, 2, 6]


@given(counts=st.lists(st.integers(0, 20), min_size=1, max_size=60), data=st.data())
def test_the_maps_lead_there_and_back(counts, data):
    size = data.draw(st.integers(1, len(counts)))
    kept = most_frequent(torch.tensor(counts), size)
    d2t, t2d = offsets(kept), membership(kept, len(counts))
    assert torch.equal(verifier_ids(d2t), kept)
    assert torch.equal(draft_ids(t2d)[kept], torch.arange(size))
    assert int(t2d.sum()) == size
    assert torch.equal(t2d.nonzero().flatten(), kept)
    assert (draft_ids(t2d)[~t2d] == -1).all()


def test_the_maps_are_offsets_as_engines_read_them():
    kept = torch.tensor([2, 3, 7])
    assert offsets(kept).tolist() == [2, 2, 5]


def test_coverage_is_the_share_of_counted_tokens():
    counts = torch.tensor([6, 3, 1, 0])
    assert covered(counts, torch.tensor([0, 1])) == pytest.approx(0.9)
    assert covered(torch.zeros(4, dtype=torch.int64), torch.tensor([0])) == 1.0


def test_a_vocabulary_survives_writing(tmp_path):
    kept = torch.tensor([0, 3])
    written = DraftVocabulary(2, 5, offsets(kept), membership(kept, 5), Coverage(0.75, 0.5))
    written.save(tmp_path)
    read = DraftVocabulary.open(tmp_path)
    assert (read.d2t.tolist(), read.t2d.tolist()) == ([0, 2], [True, False, False, True, False])
    assert (read.draft_vocab_size, read.verifier_vocab_size, read.coverage) == (2, 5, written.coverage)


def test_a_whole_vocabulary_needs_no_maps(tmp_path):
    DraftVocabulary(5, 5, None, None, Coverage(1.0, 1.0)).save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.json"]
    assert DraftVocabulary.open(tmp_path).d2t is None


def test_impossible_sizes_are_refused():
    with pytest.raises(UsageError, match="is 9, but the verifier has 4 tokens"):
        most_frequent(torch.zeros(4), 9)
    with pytest.raises(UsageError, match="too small for the verifier's 2 special tokens"):
        most_frequent(torch.zeros(4), 1, always=(0, 1))
