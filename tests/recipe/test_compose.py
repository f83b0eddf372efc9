"""How files become one recipe: extends, overlays, settings, and the rules of merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.errors import UsageError
from speculators.recipe.compose import compose, find_recipe, merge
from speculators.recipe.load import Loaded, load_recipe
from speculators.recipe.nodes import Node, Text, plain
from speculators.shipped import shipped_folder

Load = Callable[..., Loaded]
HERE = Text("some.yaml", "", Path())


def node(value: Any) -> Node:
    if isinstance(value, dict):
        return Node({key: node(below) for key, below in value.items()}, HERE, 1, 1)
    if isinstance(value, list):
        return Node([node(below) for below in value], HERE, 1, 1)
    return Node(value, HERE, 1, 1)


def merged(*values: Any) -> Any:
    result = node(values[0])
    for value in values[1:]:
        result = merge(result, node(value))
    return plain(result)


def composed(files: dict[str, str], tmp_path: Path, **options: Any) -> Any:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return plain(compose(tmp_path / "main.yaml", **options).root)


scalars = st.sampled_from([None, True, 0, 1, 2.5, "", "word"])
leaves = scalars | st.lists(scalars, max_size=2)
# In a recipe a key is either always a section or never one; here those in capitals are.
recipes = st.recursive(
    st.dictionaries(st.sampled_from("abc"), leaves),
    lambda below: st.builds(
        lambda flat, deep: {**flat, **deep},
        st.dictionaries(st.sampled_from("abc"), leaves),
        st.dictionaries(st.sampled_from("ABC"), below),
    ),
    max_leaves=8,
)


@given(recipes, recipes, recipes)
def test_merging_is_associative(first: Any, second: Any, third: Any) -> None:
    right = merge(node(first), merge(node(second), node(third)))
    assert merged(first, second, third) == plain(right)


@given(recipes)
def test_merging_a_recipe_with_itself_changes_nothing(recipe: Any) -> None:
    assert merged(recipe, recipe) == recipe
    assert merged({}, recipe) == recipe
    assert merged(recipe, {}) == recipe


def test_mappings_merge_deep_and_lists_replace() -> None:
    assert merged({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3], "d": 4}}) == {"a": {"b": 1, "c": [3], "d": 4}}


def test_a_mapping_whose_type_changes_replaces_the_old_one() -> None:
    base = {"train": {"optimizer": {"type": "adamw", "betas": [0.9, 0.95]}}}
    assert merged(base, {"train": {"optimizer": {"type": "muon"}}}) == {"train": {"optimizer": {"type": "muon"}}}
    same = {"train": {"optimizer": {"type": "adamw", "epsilon": 1.0}}}
    assert merged(base, same)["train"]["optimizer"] == {"type": "adamw", "betas": [0.9, 0.95], "epsilon": 1.0}


def test_null_deletes_a_section_but_is_kept_where_it_means_something() -> None:
    assert merged({"train": {"schedule": {"warmup": 0.5}}}, {"train": {"schedule": None}}) == {"train": {}}
    assert merged({"data": {"regenerate": {"top_p": 0.5}}}, {"data": {"regenerate": None}}) == {
        "data": {"regenerate": None}
    }


def test_bases_come_first_and_from_left_to_right(tmp_path: Path) -> None:
    files = {
        "main.yaml": "extends: [one.yaml, sub/two.yaml]\nd: main\n",
        "one.yaml": "a: one\nb: one\nc: one\nd: one\n",
        "sub/two.yaml": "extends: three.yaml\nb: two\n",
        "sub/three.yaml": "a: three\nc: three\n",
    }
    assert composed(files, tmp_path) == {"a": "three", "b": "two", "c": "three", "d": "main"}


def test_in_a_diamond_the_common_base_does_not_undo_the_first_branch(tmp_path: Path) -> None:
    files = {
        "main.yaml": "extends: [left.yaml, right.yaml]\n",
        "left.yaml": "extends: base.yaml\na: left\n",
        "right.yaml": "extends: base.yaml\nb: right\n",
        "base.yaml": "a: base\nb: base\n",
    }
    assert composed(files, tmp_path) == {"a": "left", "b": "right"}


def test_overlays_come_on_top_and_settings_last(tmp_path: Path) -> None:
    files = {"main.yaml": "train: {epochs: 1, tokens_per_step: 1}\n", "over.yaml": "train: {epochs: 2}\n"}
    over = [tmp_path / "over.yaml"]
    assert composed(files, tmp_path, overlays=over) == {"train": {"epochs": 2, "tokens_per_step": 1}}
    found = composed(files, tmp_path, overlays=over, sets=["train.epochs=3", "seed=1e2"])
    assert found == {"train": {"epochs": 3, "tokens_per_step": 1}, "seed": 100.0}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("train.epochs=4", "train.epochs", 4),
        ("train.optimizer.learning_rate=1e-3", "train.optimizer.learning_rate", 1e-3),
        ("algorithm.aux_layers=[1, 2]", "algorithm.aux_layers", (1, 2)),
        ("data.sources[0].samples=9", "data.sources.0.samples", 9),
        ("data.regenerate=null", "data.regenerate", None),
        ("eval.benchmark=", "eval.benchmark", None),
        ("description='a = b: c'", "description", "a = b: c"),
        ("train.optimizer={type: muon}", "train.optimizer.momentum", 0.95),
        ("train={schedule: {warmup: 0.5}}", "train.schedule.warmup", 0.5),
        ("verifier.random.layers=8", "verifier.random.layers", 8),
    ],
)
def test_a_setting_changes_one_value(load: Load, setting: str, path: str, value: object) -> None:
    found: Any = load("data: {sources: [{dataset: some/set}]}\n", sets=[setting]).recipe
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


def test_a_setting_reaches_into_a_section_that_was_null(load: Load) -> None:
    recipe = load("eval: {benchmark: null}\n", sets=["eval.benchmark.max_tokens=7"]).recipe
    assert recipe.eval.benchmark is not None
    assert recipe.eval.benchmark.max_tokens == 7


def test_shipped_recipes_are_found_by_name_from_anywhere() -> None:
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml", "./recipes/quickstart.yaml"):
        assert find_recipe(name).name == "quickstart.yaml"
    assert find_recipe("bases/eagle3.yaml").name == "eagle3.yaml"


@pytest.mark.parametrize("file", sorted(shipped_folder("recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_recipe_is_valid(file: Path) -> None:
    assert load_recipe(file).recipe.name == file.stem


def test_a_file_here_goes_before_a_shipped_recipe_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/quickstart.yaml").write_text("name: mine\n")
    assert find_recipe("recipes/quickstart.yaml").read_text() == "name: mine\n"


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"there is no recipe quikstart: .*\(nearest: quickstart"):
        find_recipe("quikstart")
    with pytest.raises(UsageError, match="is a folder, expected a recipe"):
        find_recipe(str(Path.cwd()))
