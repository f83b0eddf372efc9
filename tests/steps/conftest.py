"""A step run by itself: a recipe of plain dictionaries, shown as far as the step declares, and a tiny verifier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from speculators.pipeline.step import ONE_NODE, Context, Nodes, Step
from speculators.recipe.shapes.eval import Profile
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine
from speculators.verifiers.random_model import write_random_model

SOURCE: dict[str, Any] = {
    "file": None,
    "dataset": None,
    "subset": None,
    "split": None,
    "revision": None,
    "synthesize": None,
    "samples": None,
    "temperature": 1.0,
    "top_p": 0.95,
    "max_new_tokens": 60,
}
RANDOM: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "attention_heads": 4,
    "key_value_heads": 2,
    "vocab_size": 300,
    "seed": 0,
}
RECIPE: dict[str, Any] = {
    "seed": 0,
    "verifier": {
        "model": None,
        "random": RANDOM,
        "sha256": None,
        "revision": None,
        "dtype": "float32",
        "engine": {"type": "transformers", "device": "cpu", "threads": None, "batch_tokens": 4096},
    },
    "algorithm": {"draft_vocab_size": 64},
    "eval": {"benchmark": {"profile": {"type": "synchronous"}, "requests_per_level": 2, "max_tokens": 8}},
    "data": {
        "sources": (),
        "regenerate": {
            "max_new_tokens": 24,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": None,
            "samples_per_prompt": 1,
            "dtype": "verifier",
        },
        "max_length": 256,
        "train_on": "assistant",
        "holdout": 0.0,
    },
}


class Declared:
    """A recipe of which only the declared paths, and what is below them, can be read."""

    def __init__(self, values: Mapping[str, Any], reads: tuple[str, ...], path: str = "") -> None:
        self._values, self._reads, self._path = values, reads, path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}{name}"
        is_whole = any(path == read or path.startswith(f"{read}.") for read in self._reads)
        is_above = any(read.startswith(f"{path}.") for read in self._reads)
        if name not in self._values or not (is_whole or is_above):
            raise AttributeError(f"the step does not declare that it reads {path}")
        return _shown(self._values[name], self._reads, f"{path}.")


def _shown(value: Any, reads: tuple[str, ...], path: str) -> Any:
    if path == "verifier.engine.":  # a union, whose type steps look at
        return msgspec.convert(value, TransformersEngine | VllmEngine)
    if path == "eval.benchmark.profile.":  # another
        return msgspec.convert(value, Profile)
    if isinstance(value, Mapping):
        return Declared(value, reads, path)
    if isinstance(value, tuple):
        return tuple(_shown(item, reads, path) for item in value)
    return value


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.metrics: list[Mapping[str, float]] = []
        self.progressed: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, unit: str) -> None:
        self.progressed.append((done, total, unit))

    def metric(self, at: int, values: Mapping[str, float]) -> None:
        self.metrics.append(values)

    def message(self, text: str) -> None:
        self.messages.append(text)


def recipe(**changes: Any) -> dict[str, Any]:
    """The tests' recipe with some paths changed: `recipe(data__holdout=0.5)`."""
    changed: dict[str, Any] = json.loads(json.dumps(RECIPE))
    for path, value in changes.items():
        *above, last = path.split("__")
        section = changed
        for name in above:
            section = section[name]
        section[last] = value
    return changed


@pytest.fixture
def run_step(tmp_path: Path):
    """Run a step into the folder `tmp_path/<step name>`, again if it is there; gives that folder and the report.

    `nodes` are the machines that do it together, and which of them this is.
    """

    def run(step: Step, values: Mapping[str, Any], nodes: Nodes = ONE_NODE, **inputs: Path) -> tuple[Path, Told]:
        output, told = tmp_path / step.name, Told()
        output.mkdir(exist_ok=True)
        config = Declared(values, step.reads)
        step.run(Context(config=config, inputs=inputs, output=output, report=told, nodes=nodes, lock=tmp_path / "lock"))
        return output, told

    return run


@pytest.fixture
def as_view():
    """A recipe as a step sees it while planning."""
    return lambda step, values: Declared(values, step.reads)


@pytest.fixture
def make_recipe():
    return recipe


@pytest.fixture
def make_source():
    """A source of the recipe's `data.sources`."""
    return lambda **changes: SOURCE | changes


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verifier artifact of random weights."""
    from types import SimpleNamespace

    artifact = tmp_path_factory.mktemp("verifier")
    write_random_model(SimpleNamespace(**RANDOM), artifact / "model")
    record = {"source": "random", "digest": "tree:0", "location": {"directory": "model"}}
    (artifact / "verifier.json").write_text(json.dumps(record))
    return artifact
