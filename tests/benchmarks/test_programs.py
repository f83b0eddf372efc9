"""The benchmark programs run: what they print is a machine's own, and is looked at by people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]


def run(program: str, *arguments: str) -> dict[str, Any]:
    """What a program prints with `--json`."""
    command = [sys.executable, str(ROOT / "benchmarks" / program), *arguments, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_training_is_measured_beside_the_same_loss_computed_densely() -> None:
    found = run("training.py", "--no-peers", "--quick", "--tokens", "128", "--draft-vocabulary", "512", "--curve", "4")
    assert found["ratios"]["dense"]["0.6"] > 0
    ours, dense = (found["measured"]["0.6"][name]["curve"] for name in ("ours", "dense"))
    assert [steps for steps, _ in ours] == [0, 1, 2, 3, 4]
    assert ours[-1][1] < ours[0][1]
    for (_, loss), (_, other) in zip(ours, dense, strict=True):
        assert loss == pytest.approx(other, rel=0.01)


def test_a_gpu_s_checks_hold_on_a_cpu_too() -> None:
    sizes = ("--shape", "135m", "--tokens", "128", "--document", "64", "--draft-vocabulary", "512")
    found = run("gpu.py", "--device", "cpu", *sizes, "--steps", "3", "--fractions", "0.6", "--repeats", "1")
    assert {check["name"] for check in found["checks"]} >= {
        "float32: loss, against float64",
        "float32: gradients, against float64",
        "gradients, compiled against eager",
        "gradients, scores computed twice",
    }
    (row,) = found["speed"]
    assert row["attention"] == "plain"  # the other way is a GPU's
    assert row["tokens_per_second"] > 0
    assert 0 < row["product_rate_share"] < 2


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny recipe's."""
    folder = tmp_path_factory.mktemp("tiny")
    command = [sys.executable, "-m", "speculators", "run", "tiny", "--until", "verifier"]
    environment = {**os.environ, "SPECULATORS_STORE": str(folder / "store")}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return str(folder / "runs/tiny/latest/steps/verifier/model")


def test_the_engine_is_measured_beside_transformers(verifier: str) -> None:
    found = run("engine.py", verifier, "--prompts", "4", "--tokens", "8", "--dtype", "float32")
    assert found["answers"]["ours"] > 0
    assert found["hidden states"]["ours"] > 0


def test_extraction_is_measured_beside_reading(verifier: str) -> None:
    found = run("extraction.py", verifier, "--no-vllm", "--documents", "2")
    assert 0 < found["states, embedded"]["greedy_ratio"] < 3
