"""`validate`, `schema`, `recipes` and `init`, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from speculators.cli import cli
from speculators.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_a_valid_recipe_is_said_to_be_valid() -> None:
    result = run("validate", "quickstart", "tiny")
    assert (result.exit_code, result.stdout) == (0, "quickstart: valid\ntiny: valid\n")


def test_every_problem_of_every_recipe_is_printed(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("recipe: 1\nname: one\nextends: tiny\ntrain: {epochs: 0, lr: 1}\n")
    (tmp_path / "two.yaml").write_text("recipe: 1\nname: [two\n")
    result = run("validate", "one.yaml", "tiny", "two.yaml", "three.yaml")
    assert result.exit_code == 2
    assert result.stdout == "tiny: valid\n"
    assert "there is no recipe three.yaml: neither a file, nor shipped (nearest: " in result.stderr
    lines = [line for line in result.stderr.splitlines(keepends=True) if not line.startswith("there is no")]
    assert "".join(lines) == (
        "one.yaml:4:9: error: `train.epochs` is 0, must be at least 1\n"
        "     4 | train: {epochs: 0, lr: 1}\n"
        "       |         ^\n"
        "one.yaml:4:20: error: unknown key `lr` in `train`\n"
        "     4 | train: {epochs: 0, lr: 1}\n"
        "       |                    ^ `lr` is `train.optimizer.learning_rate` here\n"
        "two.yaml:2:7: error: a list is not closed, or lacks a comma\n"
        "     2 | name: [two\n"
        "       |       ^ write [a, b]\n"
        "4 problems\n"
    )


def test_problems_as_json() -> None:
    result = run("validate", "tiny", "--set", "verifier.dtype=bf16", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == [
        {
            "recipe": "tiny",
            "valid": False,
            "problems": [
                {
                    "file": "--set verifier.dtype=bf16",
                    "line": 1,
                    "column": 10,
                    "what": "`verifier.dtype` is 'bf16'",
                    "hint": "bf16 is spelled bfloat16 here; allowed: auto, float32, bfloat16, float16",
                }
            ],
        }
    ]


def test_a_local_verifiers_config_is_checked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = {"num_hidden_layers": 12, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 32000}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "mine.yaml").write_text(
        "recipe: 1\nname: mine\nextends: bases/eagle3.yaml\nverifier: {model: ./model}\n"
        "algorithm: {aux_layers: [2, 6, 13]}\ndata: {sources: [{dataset: some/set}]}\n"
    )
    result = run("validate", "mine.yaml")
    assert result.exit_code == 2
    assert f"`algorithm.aux_layers[2]` is 13, but {tmp_path / 'model'} has 12 layers (0..12)" in result.stderr


def test_validating_is_quick_and_needs_no_torch() -> None:
    program = (
        "import resource, sys; before = resource.getrusage(resource.RUSAGE_SELF).ru_utime;"
        "from speculators.cli import cli; cli.main(['validate', 'quickstart'], standalone_mode=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, has_torch = done.stdout.splitlines()[-1].split()
    assert has_torch == "False"
    assert float(seconds) < 1.0  # 0.15 s on a quiet machine; this catches only a heavy import


def test_the_schema_explains_sections_and_values() -> None:
    result = run("schema", "train.optimizer")
    assert result.exit_code == 0
    assert "What turns gradients into steps." in result.stdout
    assert "momentum (muon)" in result.stdout
    assert run("schema").stdout.count("verifier") >= 1
    assert "integer, default 1" in run("schema", "train.epochs").stdout
    assert json.loads(run("schema", "train.epochs", "--json").stdout)["default"] == 1


def test_an_unknown_path_of_the_schema_is_answered_with_the_nearest() -> None:
    result = run("schema", "trian.epochs")
    assert result.exit_code != 0
    assert "no recipe has `trian.epochs`; nearest: train.epochs" in str(result.exception)


def test_shipped_recipes_are_listed_shown_and_copied(tmp_path: Path) -> None:
    listed = run("recipes", "list").stdout
    assert "quickstart" in listed
    assert run("recipes", "list", "random weights").stdout.startswith("tiny")
    assert run("recipes", "show", "tiny").stdout.splitlines()[2] == "name: tiny"
    assert "batch_tokens: 16384" in run("recipes", "show", "tiny", "--resolved").stdout
    assert run("recipes", "copy", "tiny").stdout == "tiny.yaml\n"
    assert load_recipe("tiny.yaml").recipe == load_recipe("recipes/tiny.yaml").recipe
    assert (tmp_path / "tiny.yaml").read_text().startswith("# yaml-language-server: $schema=file:///")
    assert "is there already" in str(run("recipes", "copy", "tiny").exception)


def test_init_writes_a_valid_recipe_and_spares_what_is_there(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("dist")
    assert run("init", "mine").exit_code == 0
    assert run("validate", "mine.yaml").exit_code == 0
    assert (tmp_path / ".gitignore").read_text() == "dist\nruns/\n"
    assert "is there already" in str(run("init", "mine").exception)
    assert run("init", "mine", "--force", "--verifier", "a/b").exit_code == 0
    assert (tmp_path / ".gitignore").read_text() == "dist\nruns/\n"
    assert load_recipe("mine.yaml").recipe.verifier.model == "a/b"
    assert "is no name for a recipe" in str(run("init", "../mine").exception)
