"""Extracted states are those of transformers at exactly the layers asked for, however documents are batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.data.hidden_states import NOT_TAKEN
from speculators.data.tokens import Reading
from speculators.engines.extraction import extract, length_sorted
from speculators.engines.transformers import VerifierModel

LENGTHS = (7, 1, 30, 12, 12, 3)
ASKED = (0, 3, 6)


@pytest.fixture(scope="module")
def verifier(llama: Path) -> VerifierModel:
    return VerifierModel.load(llama, "float32", aux_layers=ASKED)


@pytest.fixture(scope="module")
def documents() -> list[Reading]:
    """Of the first the verifier's prediction is wanted everywhere, of the others after some tokens, or none."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 199, (length,), generator=generator) for length in LENGTHS]
    wanted = [torch.rand(length, generator=generator) < 0.6 for length in LENGTHS]
    return [Reading(*one) for one in zip(ids, [torch.ones(LENGTHS[0], dtype=torch.bool), *wanted[1:]], strict=True)]


@pytest.mark.parametrize("batch_tokens", [5, 40, 4096])
@torch.no_grad()
def test_states_are_those_of_transformers(
    verifier: VerifierModel, reference: Any, documents: list[Reading], batch_tokens: int
) -> None:
    found = {states.number: states for states in extract(verifier, documents, batch_tokens=batch_tokens)}
    assert sorted(found) == list(range(len(documents)))
    for number, document in enumerate(documents):
        states = found[number]
        out = reference(document.input_ids[None], output_hidden_states=True, use_cache=False)
        entering = [stream[0] for stream in out.hidden_states]
        aux = states.aux.chunk(3, -1)
        for part, layer in zip(aux[:2], ASKED[:2], strict=True):
            torch.testing.assert_close(part, entering[layer], rtol=1e-4, atol=2e-5)
            for neighbour in {layer - 1, layer + 1} - {-1}:
                assert not torch.allclose(part, entering[neighbour], rtol=1e-2, atol=1e-2), "one layer off"
        assert torch.equal(aux[2], states.last), "the last id is the stream before the final norm"
        torch.testing.assert_close(reference.model.norm(states.last), entering[-1], rtol=1e-4, atol=2e-5)
        assert not torch.allclose(states.last, entering[-1], atol=1e-2)
        assert states.argmax.dtype == torch.int32
        expected = torch.where(document.predicts, out.logits[0].argmax(-1), NOT_TAKEN)
        assert states.argmax.tolist() == expected.tolist()


@torch.no_grad()
def test_what_the_verifier_chose_itself_is_not_computed_again(
    verifier: VerifierModel, reference: Any, documents: list[Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A greedy answer of the reference's own: the choices are the text's, and the head is asked for the rest alone."""
    prompt = documents[0].input_ids[:4]
    ids = reference.generate(prompt[None], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)[0]
    predicts = torch.arange(len(ids)) < 3
    asked: list[int] = []
    argmax = verifier.argmax
    monkeypatch.setattr(verifier, "argmax", lambda last: asked.append(len(last)) or argmax(last))
    (states,) = extract(verifier, [Reading(ids, predicts, greedy_from=4)], batch_tokens=64)
    own = reference(ids[None]).logits[0].argmax(-1).tolist()
    assert states.argmax.tolist() == [*own[:-1], NOT_TAKEN]
    assert asked == [3]


def test_every_document_is_in_one_batch_with_others_of_its_length() -> None:
    lengths = [5, 90, 3, 40, 41, 3, 90, 7]
    batches = list(length_sorted(lengths, 100))
    assert sorted(number for batch in batches for number in batch) == list(range(8))
    for batch in batches:
        longest = max(lengths[number] for number in batch)
        assert longest * len(batch) <= 100
    assert [len(batch) for batch in batches] == [1, 1, 2, 4]
    assert [len(batch) for batch in length_sorted([500, 2], 100)] == [1, 1], "a longer one goes alone"


def test_some_drafts_read_the_last_state_alone(verifier: VerifierModel, llama: Path, documents: list[Reading]) -> None:
    bare = VerifierModel.load(llama, "float32")
    found = {states.number: states for states in extract(bare, documents, batch_tokens=4096)}
    for states in extract(verifier, documents, batch_tokens=4096):
        assert found[states.number].aux.shape == (len(states.argmax), 0)
        assert torch.equal(found[states.number].last, states.last)
        assert torch.equal(found[states.number].argmax, states.argmax)
