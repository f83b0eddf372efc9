"""The tiny recipe of every algorithm, step by step, until its draft is measured: not a token is changed by any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from random_heads import add_head
from safetensors.torch import load_file
from tiny_families import FAMILIES, LAYERS

from speculators.algorithms import names
from speculators.pipeline.plan import ordered
from speculators.pipeline.step import Context
from speculators.recipe.load import load_recipe
from speculators.steps import assemble

TINY = Path(__file__).parent / "tiny"
SHARED = ("verifier", "prompts", "answers", "tokens")
"""Steps that are the same for all algorithms with the same verifier."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of those steps, once they are made."""
    return tmp_path_factory.mktemp("shared")


def test_every_algorithm_has_one() -> None:
    assert {yaml.safe_load(file.read_text())["algorithm"]["type"] for file in TINY.glob("*.yaml")} == set(names())


@pytest.mark.xdist_group("tiny recipes")
@pytest.mark.parametrize("file", sorted(TINY.glob("*.yaml")), ids=lambda file: file.stem)
def test_it_is_trained_and_measured(file: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    if file.stem == "mtp":
        FAMILIES["glm-4-moe"].write(tmp_path / "verifier")
        add_head(tmp_path / "verifier")
        shared = tmp_path / "shared"
    loaded = load_recipe(str(recipe))
    assembly = assemble(loaded.recipe, loaded.data)
    report: Any = SimpleNamespace(progress=print, metric=print, message=print)
    made: dict[str, Path] = {}
    for step in ordered(assembly.steps):
        if step.name.startswith(("benchmark", "report")):
            continue
        output = made[step.name] = (shared if step.name in SHARED else tmp_path) / step.name
        if output.exists():
            continue
        output.mkdir(parents=True)
        inputs = {name: made[name] for name in step.inputs}
        step.run(Context(config=assembly.view(step.reads), inputs=inputs, output=output, report=report))
    if file.stem == "mtp":  # in bfloat16, and the router's bias as it was
        saved, own = (load_file(one / "model.safetensors") for one in (made["checkpoint"], tmp_path / "verifier"))
        bias = "mlp.gate.e_score_correction_bias"
        assert torch.equal(saved[f"mtp_layers.0.{bias}"], own[f"model.layers.{LAYERS}.{bias}"])
        assert saved["mtp_layers.0.input_proj.weight"].dtype == torch.bfloat16
    (suite,) = json.loads((made["acceptance"] / "acceptance.json").read_text())["suites"]["holdout"].values()
    assert suite["lossless"]
    assert suite["equal_prompts"] == suite["prompts"]
    assert suite["proposed_tokens"] > suite["accepted_tokens"] >= 0
