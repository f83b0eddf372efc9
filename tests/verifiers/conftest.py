"""A tiny random verifier and the recipe section that asks for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speculators.verifiers.random_model import write_random_model

SHAPE = {
    "layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "attention_heads": 4,
    "key_value_heads": 2,
    "vocab_size": 300,
    "seed": 0,
}


def section(**changes: Any) -> SimpleNamespace:
    """A recipe's verifier section."""
    fields: dict[str, Any] = {"model": None, "random": None, "sha256": None, "revision": None, "dtype": "float32"}
    return SimpleNamespace(**(fields | changes))


@pytest.fixture
def verifier_section():
    return section


@pytest.fixture(scope="session")
def shape() -> SimpleNamespace:
    return SimpleNamespace(**SHAPE)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, shape: SimpleNamespace) -> Path:
    """A checkpoint directory of random weights."""
    directory = tmp_path_factory.mktemp("verifier") / "model"
    write_random_model(shape, directory)
    return directory
