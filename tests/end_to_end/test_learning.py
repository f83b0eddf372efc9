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
    "eagle3": 1.029,
    "peagle": 1.042,
    "eagle": 1.033,
    "hass": 1.039,
    "medusa": 1.030,
    "hydra": 1.061,
    "mlp_speculator": 1.011,
    "dflash": 1.012,
    "dspark": 1.054,
    "dflash2": 1.008,
    "xpress": 1.011,
    "draft_model": 1.017,
}
"""Acceptance length after this training, at least, as it is foreseen on held-out documents: one, and half of what was
measured beyond it. The few answers that are decoded are too few rounds to tell 1.02 from 1.05."""

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
    assert found["walk_estimate"] > found["untrained_walk_estimate"]
    assert found["walk_estimate"] > FLOORS[algorithm]
    assert found["equal_answers"] == found["answers"], "not a token is changed"


def test_every_algorithm_is_among_them(program: ModuleType) -> None:
    assert FLOORS.keys() == program.DRAFTS.keys()
