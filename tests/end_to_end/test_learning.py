"""Every algorithm learns on the real 135M verifier: a short training, and its draft is accepted more often.

The quickstart's artifacts are the material; `benchmarks/algorithms.py` trains and measures, on a few of its documents.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DOCUMENTS, BATCH = 16, 256
PROMPTS, TOKENS = 8, 40
FLOORS = {
    "eagle3": 1.036,
    "peagle": 1.036,
    "eagle": 1.042,
    "hass": 1.038,
    "medusa": 1.034,
    "hydra": 1.040,
    "mlp_speculator": 1.011,
    "dflash": 1.023,
    "dspark": 1.046,
    "dflash2": 1.031,
    "xpress": 1.027,
    "draft_model": 1.026,
}
"""Acceptance length after this training, at least: one, and half of what was measured beyond it."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("algorithms")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def material(program: ModuleType, quickstart_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("quickstart")
    subprocess.run(
        [sys.executable, "-m", "speculators", "run", "quickstart", "--until", "hidden_states"],
        cwd=folder,
        env={**os.environ, "SPECULATORS_STORE": str(quickstart_store)},
        check=True,
    )
    return program.Material(folder / "runs/quickstart/latest", DOCUMENTS, PROMPTS, TOKENS, concurrency=PROMPTS)


@pytest.mark.parametrize("algorithm", FLOORS)
def test_a_short_training_on_a_real_verifier_teaches(program: ModuleType, material: Any, algorithm: str) -> None:
    found = program.measured(material, program.recipe_of(algorithm, BATCH), in_vllm=False)
    assert found["last_loss"] < found["first_loss"]
    assert found["acceptance_length"] > found["untrained_acceptance_length"]
    assert found["acceptance_length"] > FLOORS[algorithm]
    assert found["equal_answers"] == found["answers"], "not a token is changed"


def test_every_algorithm_is_among_them(program: ModuleType) -> None:
    assert FLOORS.keys() == program.DRAFTS.keys()
