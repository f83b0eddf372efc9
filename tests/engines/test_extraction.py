"""Extracted states are those of transformers at exactly the layers asked for, however documents are batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.engines.extraction import auto_layers, extract, length_sorted, resolve_layers
from speculators.engines.transformers import VerifierModel

LENGTHS = (7, 1, 30, 12, 12, 3)
ASKED = (0, 3, 6)


@pytest.fixture(scope="module")
def verifier(llama: Path) -> VerifierModel:
    return VerifierModel.load(llama, "float32", aux_layers=ASKED)


@pytest.fixture(scope="module")
def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 199, (length,), generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("batch_tokens", [5, 40, 4096])
@torch.no_grad()
def test_states_are_those_of_transformers(
    verifier: VerifierModel, reference: Any, documents: list[torch.Tensor], batch_tokens: int
) -> None:
    found = {states.number: states for states in extract(verifier, documents, batch_tokens=batch_tokens)}
    assert sorted(found) == list(range(len(documents)))
    for number, ids in enumerate(documents):
        states = found[number]
        out = reference(ids[None], output_hidden_states=True, use_cache=False)
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
        assert states.argmax.tolist() == out.logits[0].argmax(-1).tolist()


def test_every_document_is_in_one_batch_with_others_of_its_length() -> None:
    lengths = [5, 90, 3, 40, 41, 3, 90, 7]
    batches = list(length_sorted(lengths, 100))
    assert sorted(number for batch in batches for number in batch) == list(range(8))
    for batch in batches:
        longest = max(lengths[number] for number in batch)
        assert longest * len(batch) <= 100
    assert [len(batch) for batch in batches] == [1, 1, 2, 4]
    assert [len(batch) for batch in length_sorted([500, 2], 100)] == [1, 1], "a longer one goes alone"


@pytest.mark.parametrize(
    ("layers", "wanted"), [(30, (2, 15, 27)), (32, (2, 16, 29)), (36, (2, 18, 33)), (6, (2, 3, 3)), (3, (0, 1, 2))]
)
def test_the_layers_read_by_default(layers: int, wanted: tuple[int, ...]) -> None:
    assert auto_layers(layers) == wanted == resolve_layers("auto", layers)
    assert resolve_layers([1, 2], layers) == (1, 2)


def test_a_verifier_without_layers_to_read_is_a_mistake(llama: Path) -> None:
    with pytest.raises(ValueError, match="without aux_layers"):
        next(extract(VerifierModel.load(llama, "float32"), [torch.tensor([1])], batch_tokens=10))
