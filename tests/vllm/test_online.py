"""Training on states that vLLM makes meanwhile: a killed server is told, the next attempt goes on, nothing remains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from speculators.data.tokens import Document, TokenOrigin, save_tokens
from speculators.errors import StepError
from speculators.pipeline.step import Context
from speculators.recipe.load import load_recipe
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine
from speculators.steps import train, vocabulary
from speculators.training.loop import Silent
from speculators.verifiers.tokenizer import ChatTokenizer

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine

SETS = [
    "algorithm.aux_layers=[2, 3, 5]",
    "algorithm.draft_vocab_size=64",
    "verifier.random.layers=7",
    "data.max_length=64",
    "data.regenerate.max_new_tokens=32",
    "data.hidden_states={mode: online, dtype: float32, buffer_tokens: 128}",
    "train.tokens_per_step=64",
    "train.epochs=4",
    "train.checkpoint.every=1",
]


Servers = Callable[[], list[psutil.Process]]


class Losing(Silent):
    """Kills vLLM's server as soon as a batch was trained on."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def progress(self, done: int, total: int, unit: str) -> None:
        for one in self._servers() if unit == "tokens" else ():
            if "serve" in one.cmdline() and "tied" not in str(one.cmdline()):
                one.kill()


@pytest.fixture
def inputs(verifier: Path, tmp_path: Path) -> dict[str, Path]:
    """Artifacts: the verifier, and tokens and vocabulary of forty documents that count upwards."""
    found = {name: tmp_path / name for name in ("verifier", "tokens", "vocabulary")}
    for folder in found.values():
        folder.mkdir()
    (found["verifier"] / "model").symlink_to(verifier)
    record = {"source": "random", "digest": "tree:0", "location": {"directory": "model"}}
    (found["verifier"] / "verifier.json").write_text(json.dumps(record))
    tokenizer = ChatTokenizer.load(verifier)
    origin = TokenOrigin(300, (258,), tokenizer.tokenizer_sha256, tokenizer.chat_template_sha256, 64)
    documents = [
        Document(str(n), [(n * 7 + i) % 60 for i in range(12 + n)], [0] * 3 + [1] * (9 + n), is_holdout=n % 8 == 7)
        for n in range(40)
    ]
    save_tokens(found["tokens"], documents, origin)
    config = SimpleNamespace(algorithm=SimpleNamespace(draft_vocab_size=64))
    vocabulary.STEP.run(Context(config, found, found["vocabulary"], Silent()))
    return found


def test_training_goes_on_after_its_server_was_killed_and_learns_the_same(
    inputs: Mapping[str, Path],
    engine: VllmEngine,
    embedded: TransformersEngine,
    servers: Servers,
    tmp_path: Path,
) -> None:
    def attempt(running: VllmEngine | TransformersEngine, report: Silent) -> dict[str, Any]:
        recipe = load_recipe("tiny", sets=SETS).recipe
        verifier = SimpleNamespace(dtype="float32", engine=running)
        sections = {name: getattr(recipe, name) for name in ("algorithm", "train", "data", "seed")}
        output = tmp_path / running.__struct_config__.tag
        output.mkdir(exist_ok=True)
        config = SimpleNamespace(**sections, verifier=verifier)
        (step,) = train.steps(recipe)
        step.run(Context(config=config, inputs=inputs, output=output, report=report))
        assert sorted(file.name for file in output.iterdir()) == [
            "draft.json",
            "metrics.jsonl",
            "model.safetensors",
            "result.json",
        ]
        found: dict[str, Any] = json.loads((output / "result.json").read_text())
        return found

    wanted = attempt(embedded, Silent())
    with pytest.raises(StepError, match="ended with code -9 while it was needed"):
        attempt(engine, Losing(servers))
    assert psutil.wait_procs(servers(), timeout=30)[1] == []
    assert list((tmp_path / "vllm").glob("checkpoints/step-*"))
    found = attempt(engine, Silent())
    assert servers() == []
    assert found["steps"] == wanted["steps"]
    assert found["final"]["loss"] == pytest.approx(wanted["final"]["loss"], rel=1e-2)
