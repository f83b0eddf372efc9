"""Images in a real vLLM (CPU build): its states and answers are the embedded engine's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from pictures import asked, draw, expanded, with_sight
from tiny_families import FAMILIES

from speculators.data.tokens import Reading
from speculators.decoding.request import Request
from speculators.engines.opened import Opening, extracting, generating
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine
from speculators.verifiers.images import ImageReader

pytestmark = pytest.mark.xdist_group("vllm")

LAYERS = (1, 2, 3)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    FAMILIES["qwen3-vl"].write(folder / "blind")
    return with_sight(folder / "blind", folder / "verifier")


@pytest.fixture(scope="module")
def reader(seeing: Path) -> ImageReader:
    return ImageReader(seeing)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def opening(seeing: Path, engine: VllmEngine, tmp_path: Path) -> Opening:
    small = msgspec.structs.replace(engine, max_length=256)
    return Opening(small, seeing, "float32", None, tmp_path / "engine", reads_images=True)


def test_states_of_texts_with_images_are_ours(
    opening: Opening, embedded: TransformersEngine, seeing: Path, reader: ImageReader, pictures: list[Path]
) -> None:
    readings = []
    for images in (pictures, pictures[:1], ()):
        ids = torch.tensor(expanded(seeing, reader, images)[0])
        readings.append(Reading(ids, ids >= 0, images=tuple(images)))
    with extracting(replace(opening, engine=embedded), LAYERS) as extract:
        own = {one.number: one for one in extract(readings)}
    with extracting(opening, LAYERS) as extract:
        found = {one.number: one for one in extract(readings)}
    assert found.keys() == own.keys() == {0, 1, 2}
    for number, states in found.items():
        torch.testing.assert_close(states.aux, own[number].aux, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(states.last, own[number].last, rtol=2e-3, atol=2e-3)
        assert torch.equal(states.argmax, own[number].argmax)


def test_answers_about_images_are_ours(
    opening: Opening, embedded: TransformersEngine, seeing: Path, reader: ImageReader, pictures: list[Path]
) -> None:
    requests = [asked(seeing, reader, pictures), Request([5, 6, 7], 10), asked(seeing, reader, pictures[2:])]
    with generating(replace(opening, engine=embedded)) as generate:
        own = {one.number: one.token_ids for one in generate(requests)}
    with generating(opening) as generate:
        found = {one.number: one.token_ids for one in generate(requests)}
    assert found == own
