"""What loading gives: typed values, their origins, paths that work from anywhere, and the shipped recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from speculators.recipe.crossfield import check
from speculators.recipe.load import Loaded, load_recipe, recipe_of
from speculators.recipe.schema import fill
from speculators.recipe.shapes.train import Muon
from speculators.shipped import shipped_folder

Load = Callable[..., Loaded]
SHIPPED = sorted(file.stem for file in shipped_folder("recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid_and_named_after_their_files(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.recipe.name == name
    assert recipe_of(json.loads(json.dumps(loaded.data))) == loaded.recipe


def test_tiny_needs_nothing_from_the_network() -> None:
    recipe = load_recipe("tiny").recipe
    assert recipe.verifier.random is not None
    assert all(source.dataset is None for source in recipe.data.sources)


def test_defaults_are_filled_and_filling_again_changes_nothing(load: Load) -> None:
    data = load().data
    assert data["train"]["schedule"] == {"type": "cosine", "warmup": 0.03, "final": 0.0}
    assert fill(data) == data


def test_the_options_of_the_chosen_optimizer_are_filled(load: Load) -> None:
    assert load("train: {optimizer: {type: muon}}\n").recipe.train.optimizer == Muon(
        learning_rate=0.02, adamw_learning_rate=0.0003, weight_decay=0.0, momentum=0.95
    )


def test_naming_one_loss_leaves_the_default_loss_out(load: Load) -> None:
    loss = load(
        "algorithm: {type: eagle3, aux_layers: [1], draft_vocab_size: 300, loss: {ce: 2}}\n"
    ).recipe.algorithm.loss
    assert (loss.ce, loss.kl) == (2.0, 0.0)


def test_numbers_become_what_is_declared(load: Load) -> None:
    recipe = load("train: {tokens_per_step: 1e4, gradient_clip: 1, epochs: 2.0}\n").recipe
    assert [type(value) for value in (recipe.train.tokens_per_step, recipe.train.gradient_clip)] == [int, float]
    assert recipe.train.epochs == 2


def test_every_value_knows_its_origin(load: Load, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train:\n  epochs: 2\n  tokens_per_step: 64\n")
    (tmp_path / "over.yaml").write_text("train: {tokens_per_step: 32}\n")
    loaded = load("extends: base.yaml\n", overlays=["over.yaml"], sets=["seed=4"])
    assert loaded.origin("train.epochs") == "base.yaml:2:3"
    assert loaded.origin("train.tokens_per_step") == "over.yaml:1:9"
    assert loaded.origin("seed") == "--set"
    assert loaded.origin("algorithm.layers") == "schema default"
    assert loaded.origin("data.sources[0].samples") == "bad.yaml:6:34"
    assert [file.name for file in loaded.files] == ["base.yaml", "bad.yaml", "over.yaml"]


def test_paths_are_seen_from_the_file_that_wrote_them(load: Load, tmp_path: Path) -> None:
    (tmp_path / "deep/data").mkdir(parents=True)
    (tmp_path / "deep/data/traffic.jsonl").write_text("")
    (tmp_path / "deep/base.yaml").write_text("data: {sources: [{file: data/traffic.jsonl}]}\n")
    (tmp_path / "main.yaml").write_text(
        "recipe: 1\nname: main\nextends: deep/base.yaml\nverifier: {model: ./model}\nalgorithm: {type: eagle3}\n"
    )
    (tmp_path / "model").mkdir()
    recipe = load_recipe(tmp_path / "main.yaml").recipe
    assert recipe.data.sources[0].file == str((tmp_path / "deep/data/traffic.jsonl").resolve())
    assert recipe.verifier.model == str((tmp_path / "model").resolve())


def test_shipped_files_are_found_from_a_copied_recipe(load: Load) -> None:
    file = load("data: {sources: [{file: data/prompts.jsonl}]}\n").recipe.data.sources[0].file
    assert file == str(shipped_folder("recipes") / "data/prompts.jsonl")


def test_a_hub_id_stays_a_hub_id(load: Load) -> None:
    assert load("verifier: {model: Qwen/Qwen3-8B}\n").recipe.verifier.model == "Qwen/Qwen3-8B"


def test_the_verifiers_config_is_checked_with_the_place_of_what_is_wrong(load: Load) -> None:
    loaded = load("verifier: {model: Qwen/Qwen3-8B}\nalgorithm:\n  type: eagle3\n  aux_layers: [2, 18, 40]\n")
    facts = SimpleNamespace(layers=36, vocab_size=1000, max_position_embeddings=1024)
    found = check(loaded.recipe, facts, loaded.origins)
    assert [f"{problem.place}: {problem.what}" for problem in found] == [
        "bad.yaml:3:1: `data.max_length` is 2048, but Qwen/Qwen3-8B reads at most 1024 tokens",
        "bad.yaml:6:1: `algorithm.draft_vocab_size` is 32000, but Qwen/Qwen3-8B has 1000 tokens",
        "bad.yaml:8:23: `algorithm.aux_layers[2]` is 40, but Qwen/Qwen3-8B has 36 layers (0..36)",
    ]
    assert not check(loaded.recipe, SimpleNamespace(layers=40, vocab_size=32000, max_position_embeddings=2048))


def test_code_of_a_model_runs_only_when_recipe_and_command_line_agree(load: Load) -> None:
    text = "verifier: {model: a/b, revision: abc, trust_remote_code: true}\n"
    assert load(text).recipe.verifier.trust_remote_code
    assert load(text, trust_remote_code=True).recipe.verifier.trust_remote_code


def test_loading_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "guidellm", "matplotlib", "numpy", "huggingface_hub")
    program = (
        "import sys; from speculators.recipe.load import load_recipe; load_recipe('tiny'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
