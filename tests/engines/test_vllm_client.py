"""What we ask of a vLLM, asked of our own server, which speaks the same API; the real one is in tests/vllm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from speculators.decoding.request import Request
from speculators.engines.generation import generate
from speculators.engines.opened import Opening, generating
from speculators.engines.process import Launch, running
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.answers import answers
from speculators.engines.vllm.client import served_model
from speculators.errors import StepError
from speculators.recipe.shapes.verifier import VllmEngine
from speculators.verifiers.random_model import write_random_model

SHAPE = SimpleNamespace(
    layers=4, hidden_size=64, intermediate_size=128, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
)
ENGINE = {
    "concurrency": 4, "tensor_parallel": 1, "data_parallel": 1, "replicas": 1, "max_length": None,
    "memory_fraction": 0.9, "cpu_cache": 4, "eager": False, "start_seconds": 60,
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "verifier"
    write_random_model(SHAPE, directory)
    return directory


def launch(verifier: Path, log: Path) -> Launch:
    command = [sys.executable, "-m", "speculators", "serve", str(verifier), "--model-name", "m", "--port", "0"]

    def url_of(printed: str) -> str | None:
        lines = [line for line in printed.splitlines() if line.startswith("serving ")]
        return lines[0].rsplit(" ", 1)[1].removesuffix("/v1") if lines else None

    return Launch([*command, "--dtype", "float32", "--slots", "8"], log, url_of)


@pytest.fixture(scope="module")
def url(verifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running([launch(verifier, tmp_path_factory.mktemp("log") / "log")]) as (found,):
        yield found


def requests(count: int, tokens: int = 24) -> list[Request]:
    stops = frozenset(range(40))
    return [Request([7 + number, 3, 200 - number], tokens, stop_ids=stops) for number in range(count)]


def test_answers_are_those_of_the_embedded_engine(verifier: Path, url: str) -> None:
    asked = requests(20)
    found = {one.number: one for one in answers([url], "m", asked, at_once=6)}
    wanted = {one.number: one for one in generate(VerifierModel.load(verifier, "float32"), asked, batch_tokens=4096)}
    assert found == wanted
    assert {one.reason for one in wanted.values()} == {"stop", "length"}


def test_sampled_answers_follow_their_seeds(url: str) -> None:
    asked = [Request([5, 6, 7], 16, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    ids = {one.number: one.token_ids for one in answers([url], "m", asked, at_once=2)}
    assert ids[0] == ids[2] != ids[1]


def test_a_reader_that_stops_leaves_nothing_running(url: str) -> None:
    found = answers([url], "m", requests(50, 400), at_once=4)
    next(found)
    found.close()


def test_a_running_server_can_be_named_instead_of_starting_one(verifier: Path, url: str, tmp_path: Path) -> None:
    engine = VllmEngine(endpoint=f"{url}/v1/", **ENGINE)  # type: ignore[arg-type]
    opening = Opening(engine, verifier, "float32", None, tmp_path / "engine")
    with generating(opening) as answer:
        assert len(list(answer(requests(3)))) == 3


def test_a_request_that_is_refused_is_told_in_the_server_s_words(url: str) -> None:
    with pytest.raises(StepError, match=r"refused a request \(400\).*the context holds"):
        list(answers([url], "m", [Request([1], 100_000)], at_once=1))


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"no OpenAI-compatible server answers at http://127\.0\.0\.1:1"):
        served_model("http://127.0.0.1:1")


def test_a_server_that_is_killed_among_answers_is_told_with_its_log(verifier: Path, tmp_path: Path) -> None:
    log, others = tmp_path / "log", set(psutil.Process().children())

    def lose_it() -> None:
        with running([launch(verifier, log)]) as (url,):
            found = answers([url], "m", requests(40, 200), at_once=4)
            next(found)
            (tied,) = set(psutil.Process().children()) - others
            (server,) = tied.children()
            server.kill()
            list(found)

    with pytest.raises(StepError, match="ended with code -9 while it was needed"):
        lose_it()
