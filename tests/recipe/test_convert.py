"""Recipes that convert a draft: what they may not say, and which steps they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculators.errors import RecipeError
from speculators.recipe.load import load_recipe
from speculators.steps import graph

READY = [
    "eagle3-llama3.1-8b-instruct",
    "eagle3-llama3.3-70b-instruct",
    "eagle3-deepseek-r1-distill-llama-8b",
    "eagle3-qwen3-235b-a22b",
    "eagle3-gpt-oss-120b-v2",
    "eagle3-llama-4-maverick",
    "dflash-qwen3-8b",
    "dflash-qwen3-4b",
    "dflash-llama3.1-8b-instruct",
    "dspark-qwen3-8b",
]
MEASURED_HERE = ["eagle-llama3.1-8b-instruct", "eagle-llama3-8b-instruct", "hass-llama3-8b-instruct"]
"""Drafts that vLLM does not load in our format."""
ONLY = ("verifier.model=org/model", "convert.source=org/draft", "name=one")


def names(recipe):
    return [step.name for step in graph(recipe)]


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_converts_and_measures(name):
    recipe = load_recipe(name).recipe
    assert recipe.converts
    assert recipe.convert.dtype == "source"
    steps = names(recipe)
    assert steps[:4] == ["verifier", "convert", "prompts", "checkpoint"]
    assert steps[-3:] == ["benchmark-dense", "benchmark-speculator", "report"]
    assert "train" not in steps


@pytest.mark.parametrize("name", MEASURED_HERE)
def test_a_draft_that_vllm_does_not_load_as_it_is_gets_its_acceptance_measured(name):
    recipe = load_recipe(name).recipe
    assert recipe.converts
    steps = names(recipe)
    assert steps[:4] == ["verifier", "convert", "prompts", "checkpoint"]
    assert "acceptance" in steps
    assert not [step for step in steps if step.startswith("benchmark")]


def test_only_a_conversion_needs_nothing_but_a_few_files_of_a_verifier_on_the_hub():
    assert names(load_recipe("bases/convert.yaml", sets=ONLY).recipe) == ["convert", "checkpoint", "report"]
    random = ("verifier.random={}", *ONLY[1:])
    found = graph(load_recipe("bases/convert.yaml", sets=random).recipe)
    assert [step.name for step in found] == ["verifier", "convert", "checkpoint", "report"]
    assert found[1].inputs == ("verifier",)


def test_the_best_number_of_tokens_can_be_found_for_a_converted_draft():
    sets = (*ONLY, "eval.acceptance={speculative_tokens: auto}", "eval.benchmark={}")
    found = {step.name: step.inputs for step in graph(load_recipe("bases/convert.yaml", sets=sets).recipe)}
    assert found["speculative_tokens"] == ("verifier", "prompts", "convert")
    assert found["checkpoint"] == ("convert", "speculative_tokens")
    assert found["report"][0] == "convert"


@pytest.mark.parametrize("section", ["algorithm: {type: eagle3}", "data: {sources: [{file: a}]}", "train: {epochs: 2}"])
def test_a_section_about_training_is_of_no_use(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(
        f"recipe: 1\nname: bad\nverifier: {{model: a/b}}\nconvert: {{source: c/d}}\n{section}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("bad.yaml")
    name = section.partition(":")[0]
    assert str(caught.value) == (
        f"bad.yaml:5:1: error: `{name}` is of no use: the draft is converted, not trained\n"
        f"     5 | {section}\n"
        "       | ^ remove it, or `convert.source`; what comes from a base recipe is taken back with null"
    )


def test_what_a_base_says_about_training_can_be_taken_back(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: 1\nname: mine\nextends: tiny\nconvert: {source: c/d}\nalgorithm: null\ndata: null\ntrain: null\n"
    )
    assert load_recipe(file).recipe.converts


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("format: modelopt", "`convert.format` says how to read a source, and there is no `convert.source`"),
        ("aux_layers: [1, 2]", "`convert.aux_layers` says how to read a source"),
        ("dtype: source", "`convert.dtype` is source, and nothing is converted"),
    ],
)
def test_what_is_about_a_source_needs_one(said, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", sets=[f"convert={{{said}}}"])


def test_without_a_source_algorithm_and_data_are_still_asked_for(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("recipe: 1\nname: bad\nverifier: {model: a/b}\nconvert: {dtype: float32}\n")
    with pytest.raises(RecipeError, match=r"(?s)`algorithm` is missing.*`data` is missing"):
        load_recipe(file)


def test_the_resolved_recipe_is_the_same_recipe(tmp_path):
    from speculators.cli.run import resolved_text

    loaded = load_recipe("eagle3-gpt-oss-120b-v2")
    (tmp_path / "again.yaml").write_text(resolved_text(loaded))
    assert "train" not in loaded.data
    assert load_recipe(tmp_path / "again.yaml").recipe == loaded.recipe
