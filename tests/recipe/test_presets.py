"""`algorithm.preset: paper`: what the authors published, below what the recipe says itself, and then no trace of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from speculators.recipe.compose import find_recipe, read_text
from speculators.recipe.load import Loaded, load_recipe
from speculators.recipe.nodes import plain
from speculators.recipe.schema import recipe_schema
from speculators.recipe.semantic import semantic
from speculators.recipe.source import read
from speculators.recipe.write import inline

Load = Callable[..., Loaded]
TYPES = recipe_schema()["properties"]["algorithm"]["properties"]["type"]["enum"]
LAYERS = {"eagle3": 3, "peagle": 3, "dflash": 5, "dspark": 5, "dflash2": 5, "xpress": 5}

PUBLISHED: dict[str, dict[str, Any]] = {
    "eagle": {
        "algorithm.loss.smooth_l1": 1.0,
        "algorithm.loss.soft_ce": 0.1,
        "algorithm.feature_noise": 0.1,
        "train.epochs": 20,
        "train.optimizer.learning_rate": 3e-5,
        "train.optimizer.betas": (0.9, 0.95),
        "train.gradient_clip": None,
        "train.gradient_clip_value": 0.5,
    },
    "hass": {
        "algorithm.aligned_steps": 3,
        "algorithm.loss.smooth_l1": 1.0,
        "algorithm.loss.soft_ce": 0.1,
        "algorithm.loss.top_k": 0.0,
        "train.epochs": 40,
        "train.optimizer.learning_rate": 3e-5,
        "train.gradient_clip_value": 0.5,
        "train.second_phase.epochs": 10,
        "train.second_phase.optimizer.learning_rate": 1e-5,
        "train.second_phase.loss.top_k": 1.0,
    },
    "eagle3": {
        "algorithm.layers": 1,
        "algorithm.training_time_test.steps": 7,
        "algorithm.training_time_test.decay": 0.8,
        "algorithm.draft_vocab_size": 32000,
        "algorithm.normalization.before_residual": False,
        "algorithm.normalization.before_fc": False,
        "algorithm.normalization.output": False,
        "algorithm.out_of_vocabulary": "drop",
        "algorithm.reduction": "padded_mean",
        "train.optimizer.learning_rate": 5e-5,
        "train.optimizer.betas": (0.9, 0.95),
        "train.gradient_clip": 0.5,
        "train.epochs": 40,
    },
    "peagle": {
        "algorithm.layers": 4,
        "algorithm.depths": 8,
        "algorithm.sampling.ratio": 0.7,
        "algorithm.sampling.least": 0.2,
        "algorithm.train_embeddings": True,
    },
    "dflash": {
        "algorithm.layers": 5,
        "algorithm.block_size": 16,
        "algorithm.anchors": 512,
        "algorithm.draft_vocab_size": None,
        "algorithm.weights.gamma": 7.0,
        "algorithm.loss.ce": 1.0,
        "algorithm.loss.ce_target": "data",
        "train.optimizer.learning_rate": 6e-4,
        "train.schedule.warmup": 0.04,
        "train.gradient_clip": 1.0,
    },
    "dspark": {
        "algorithm.layers": 5,
        "algorithm.block_size": 7,
        "algorithm.markov_rank": 256,
        "algorithm.gamma": 4.0,
        "algorithm.confidence.weight": 1.0,
        "algorithm.loss.ce": 0.1,
        "algorithm.loss.tv": 2 * 0.9,
        "algorithm.loss.ce_target": "data",
        "train.epochs": 10,
        "train.optimizer.learning_rate": 6e-4,
        "train.optimizer.betas": (0.9, 0.999),
    },
    "dflash2": {
        "algorithm.convolution.taps": 2,
        "algorithm.convolution.group_size": 16,
        "algorithm.selector.top_k": 16,
    },
    "xpress": {
        "algorithm.refiner.rank": 256,
        "algorithm.refiner.passes": 6,
        "algorithm.free_running.rounds": 3,
        "algorithm.free_running.weight": 0.3,
        "algorithm.base_weight": 0.6,
        "algorithm.loss.ce": 0.1,
        "algorithm.loss.tv": 0.9,
    },
    "medusa": {
        "algorithm.heads": 5,
        "algorithm.layers": 1,
        "algorithm.decay": 0.8,
        "algorithm.loss.ce": 1.0,
        "algorithm.loss.ce_target": "data",
        "algorithm.loss.kl": 0.0,
        "train.optimizer.learning_rate": 1e-3,
    },
    "hydra": {"algorithm.heads": 4, "algorithm.layers": 4, "algorithm.loss.kl": 1.0, "algorithm.loss.ce": 0.0},
    "mlp_speculator": {
        "algorithm.heads": 3,
        "algorithm.loss.ce": 1.0,
        "algorithm.loss.ce_target": "data",
        "data.regenerate.max_new_tokens": 256,
        "train.optimizer.learning_rate": 1e-3,
        "train.optimizer.weight_decay": 0.1,
        "train.optimizer.betas": (0.9, 0.95),
    },
    "mtp": {
        "algorithm.steps": 3,
        "algorithm.decay": 0.6,
        "algorithm.loss.ce_target": "data",
        "train.epochs": 3,
        "train.optimizer.learning_rate": 5e-5,
    },
    "draft_model": {"algorithm.loss.kl": 1.0},
}
"""What papers and the authors' programs say, in the recipe's words."""


def small(kind: str) -> str:
    """What lets a type be used with a verifier of four layers."""
    layers = f", aux_layers: [{', '.join(map(str, range(1, 4)))}]" if kind in LAYERS else ""
    group = ", convolution: {group_size: 16}" if kind == "dflash2" else ""
    model = ", random: {layers: 1}" if kind == "draft_model" else ""
    return layers + group + model


def value(found: Any, path: str) -> Any:
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_every_base_says_what_was_published(load: Load, kind: str) -> None:
    text = f"extends: bases/{kind}.yaml\nalgorithm: {{type: {kind}{small(kind)}}}\n"
    recipe = load(text, sets=["eval.acceptance=null", *reduced(kind)]).recipe
    expected = PUBLISHED[kind] | ({"algorithm.draft_vocab_size": 300} if reduced(kind) else {})
    assert {path: value(recipe, path) for path in expected} == expected


def reduced(kind: str) -> list[str]:
    return ["algorithm.draft_vocab_size=300"] if kind in ("eagle3", "peagle") else []


@pytest.mark.parametrize("kind", TYPES)
def test_a_preset_is_the_algorithm_of_the_base(load: Load, kind: str) -> None:
    options = f"{{type: {kind}, preset: paper{small(kind)}}}"
    sets = ["eval.acceptance=null", *reduced(kind)]
    by_preset = load(f"algorithm: {options}\n", sets=sets)
    by_base = load(f"extends: bases/{kind}.yaml\nalgorithm: {{type: {kind}{small(kind)}}}\n", sets=sets)
    assert by_preset.recipe.algorithm == by_base.recipe.algorithm
    assert "preset" not in by_preset.data["algorithm"]
    assert by_preset.files[0] == find_recipe(f"bases/{kind}.yaml").resolve()
    paths = ("algorithm",)
    assert semantic(by_preset.recipe, paths) == semantic(by_base.recipe, paths)


def test_a_preset_changes_no_other_section_and_knows_its_place(load: Load) -> None:
    found = load("algorithm: {type: dspark, preset: paper, aux_layers: [1, 2, 3]}\n", sets=["eval.acceptance=null"])
    assert found.recipe.train.optimizer.learning_rate == 1e-4
    assert found.origin("algorithm.loss.tv").startswith("bases/dspark.yaml:")
    assert found.origin("algorithm.aux_layers").startswith("bad.yaml:")


def test_what_a_recipe_says_itself_goes_before_its_preset_however_it_is_said(load: Load, tmp_path: Any) -> None:
    (tmp_path / "over.yaml").write_text("algorithm: {gamma: 5.0}\n")
    found = load(
        "algorithm: {type: dspark, preset: paper, aux_layers: [1, 2, 3], loss: {tv: 0.5}}\n",
        overlays=["over.yaml"],
        sets=["eval.acceptance=null", "algorithm.markov_rank=8"],
    ).recipe.algorithm
    assert (found.gamma, found.markov_rank, found.loss.tv, found.loss.ce) == (5.0, 8, 0.5, 0.1)


def test_a_preset_may_come_from_the_command_line_and_be_taken_back(load: Load) -> None:
    sets = ["eval.acceptance=null", "algorithm={type: dspark, aux_layers: [1, 2, 3]}"]
    ours, paper = (load(sets=[*sets, *more]).recipe for more in ([], ["algorithm.preset=paper"]))
    assert (ours.algorithm.loss.tv, paper.algorithm.loss.tv) == (0.9, 1.8)
    back = load(sets=[*sets, "algorithm.preset=paper", "algorithm.preset=null"]).recipe
    assert semantic(back, ("algorithm",)) == semantic(ours, ("algorithm",))


def test_saying_the_preset_s_values_is_saying_the_preset(load: Load) -> None:
    """Keys do not depend on how values came into a recipe."""
    section = plain(read(read_text(find_recipe("bases/dspark.yaml"))))["algorithm"] | {"aux_layers": [1, 2, 3]}
    said = load_recipe("tiny", sets=[f"algorithm={inline(section)}", "eval.acceptance=null"]).recipe
    named = load_recipe(
        "tiny", sets=["algorithm={type: dspark, preset: paper, aux_layers: [1, 2, 3]}", "eval.acceptance=null"]
    ).recipe
    assert said == named
