"""Tokens come back as they were written, document by document, with the masks of their own split."""

import json

import pytest
import torch

from speculators.data.tokens import Document, TokenDataset, TokenOrigin, save_tokens
from speculators.errors import UsageError

ORIGIN = TokenOrigin(vocab_size=10, special_ids=(8, 9), tokenizer_sha256="aa", chat_template_sha256="bb", max_length=16)
DOCUMENTS = [
    Document("a", [8, 1, 2, 3, 9], [0, 0, 1, 1, 1], is_holdout=False),
    Document("b", [8, 3, 3, 9], [0, 1, 1, 1], is_holdout=True, greedy_from=2),
    Document("c", [8, 2, 5], [0, 0, 1], is_holdout=False),
]


@pytest.fixture
def dataset(tmp_path) -> TokenDataset:
    save_tokens(tmp_path, DOCUMENTS, ORIGIN)
    return TokenDataset.open(tmp_path)


def test_every_document_comes_back_as_it_was(dataset):
    for number, document in enumerate(DOCUMENTS):
        input_ids, loss_mask = dataset.document(number)
        assert input_ids.tolist() == document.input_ids
        assert loss_mask.tolist() == [bool(mine) for mine in document.loss_mask]
        assert (input_ids.dtype, loss_mask.dtype) == (torch.int64, torch.bool)
    assert (len(dataset), dataset.tokens, dataset.lengths.tolist()) == (3, 12, [5, 4, 3])
    assert (dataset.ids, dataset.origin) == (("a", "b", "c"), ORIGIN)


def test_the_verifier_predicts_where_the_next_token_is_the_assistant_s(dataset):
    readings = [dataset.reading(number) for number in range(3)]
    assert [one.input_ids.tolist() for one in readings] == [document.input_ids for document in DOCUMENTS]
    assert [one.predicts.int().tolist() for one in readings] == [[0, 1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0]]
    assert [one.greedy_from for one in readings] == [None, 2, None]


def test_where_the_text_is_the_verifier_s_greedy_answer_its_choices_are_the_text(dataset):
    computed = [torch.tensor([-1, 5, 5, 5, -1]), torch.tensor([7, -1, -1, -1])]
    choices = [dataset.reading(number).with_known_choices(argmax).tolist() for number, argmax in enumerate(computed)]
    assert choices == [[-1, 5, 5, 5, -1], [7, 3, 9, -1]]


def test_the_file_has_the_layout_that_other_steps_rely_on(dataset, tmp_path):
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "tokens.safetensors")
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()} == {
        "input_ids": (torch.int32, [12]),
        "loss_mask": (torch.uint8, [12]),
        "offsets": (torch.int64, [4]),
        "holdout": (torch.uint8, [3]),
        "greedy_from": (torch.int32, [3]),
    }
    record = json.loads((tmp_path / "tokens.json").read_text())
    assert (record["documents"], record["tokens"], record["loss_tokens"]) == (3, 12, 7)
    assert record["special_ids"] == [8, 9]


def test_train_and_holdout_are_kept_apart(dataset):
    assert (dataset.train_documents, dataset.holdout_documents) == ([0, 2], [1])
    assert dataset.loss_counts().tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 0, 1]
    assert dataset.loss_counts(holdout=True).tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 1]


def test_files_of_two_artifacts_are_told_apart(dataset, tmp_path):
    record = json.loads((tmp_path / "tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps(record | {"ids": ["a", "b"]}))
    with pytest.raises(UsageError, match="do not describe the same documents"):
        TokenDataset.open(tmp_path)
