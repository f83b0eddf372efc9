"""convert, inspect and export, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from speculators.checkpoints.check import check_checkpoint
from speculators.checkpoints.exporters import ENGINES, TARGETS
from speculators.checkpoints.importers import FORMATS
from speculators.checkpoints.load import read_checkpoint
from speculators.cli.convert import recipe_name
from speculators.cli.export import TARGETS as EXPORTED
from speculators.cli.export import command as export
from speculators.cli.inspect import command as inspect


def inspected(place: Path) -> dict:
    told = CliRunner().invoke(inspect, [str(place), "--json"], catch_exceptions=False)
    assert told.exit_code == 0
    return json.loads(told.output)


@pytest.mark.timeout(300)
def test_a_draft_is_converted_measured_looked_at_and_given_back(make_draft, verifier_folder, speculators, tmp_path):
    draft = make_draft("eagle3", dtype=torch.float16)
    source = draft.save(tmp_path / "Some Draft", pickled=True)
    arguments = ("convert", str(source), "--verifier", str(verifier_folder), "-o", "converted")
    measured = ("--set", "eval.acceptance={speculative_tokens: 2, max_new_tokens: 8, prompts: 2}")
    run = speculators(*arguments, *measured, "--set", "verifier.dtype=float32", folder=tmp_path)
    assert run.returncode == 0, run.stdout
    for told in (
        "convert: EAGLE-3 (SafeAILab): its layer is named midlayer, both vocabulary maps are there",
        "convert: embed_tokens.weight is the verifier's",
        "written             converted",
    ):
        assert told in run.stdout
    results = json.loads((tmp_path / "runs/some-draft/latest/results.json").read_text())
    assert results["acceptance"]["holdout"]["lossless"] is True
    assert results["conversion"]["format"] == "eagle3"
    assert results["algorithm"] == "eagle3"
    folder = tmp_path / "converted"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert check_checkpoint(folder) == []
    ours = read_checkpoint(folder)
    assert (ours.verifier, ours.speculative_tokens, ours.config["dtype"]) == (str(verifier_folder), 2, "float16")
    assert "Converted by speculators from" in (folder / "README.md").read_text()

    again = speculators(*arguments, folder=tmp_path)
    assert again.returncode == 2
    assert again.stdout.strip() == "converted is already there; name a new folder"

    told = inspected(folder)
    assert (told["format"], told["served"], told["problems"]) == ("speculators", True, [])
    assert (told["verifier"], told["reads"]) == (str(verifier_folder), [2, 4, 6])
    theirs = inspected(source)
    assert (theirs["served"], len(theirs["tensors"])) == (False, len(draft.tensors))

    back = tmp_path / "back"
    done = CliRunner().invoke(export, [str(folder), "--to", "eagle3", "-o", str(back)], catch_exceptions=False)
    assert done.output == f"{len(draft.tensors)} tensors written to {back}, as eagle3 has them\n"
    assert json.loads((back / "config.json").read_text()) == draft.config
    tensors = load_file(back / "model.safetensors")
    assert set(tensors) == set(draft.tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in draft.tensors.items())
    for engine, meant in (("vllm-native", "eagle3.1"), ("sglang", "specforge")):
        asked = [str(folder), "--to", engine, "-o", str(tmp_path / engine)]
        done = CliRunner().invoke(export, asked, catch_exceptions=False)
        assert done.output.endswith(f", as {meant} has them\n")


@pytest.mark.timeout(300)
def test_a_broken_draft_leaves_nothing_and_is_explained_once(make_draft, verifier_folder, speculators, tmp_path):
    draft = make_draft("eagle3")
    draft.tensors["fc.weight"][0, 0] = float("nan")
    source = draft.save(tmp_path / "broken")
    run = speculators("convert", str(source), "--verifier", str(verifier_folder), "-o", "converted", folder=tmp_path)
    assert run.returncode != 0
    assert "fc.weight holds values that are no numbers (NaN or infinite)" in run.stdout
    assert "Traceback" not in run.stdout
    assert not (tmp_path / "converted").exists()
    assert not [*(tmp_path / "store/artifacts").glob("convert-*"), *(tmp_path / "store/artifacts").glob("checkpoint-*")]


def test_inspect_says_what_would_have_to_change(make_draft, old_draft, tmp_path):
    exported = inspected(make_draft("modelopt").save(tmp_path / "theirs"))
    assert (exported["format"], exported["served"]) == ("modelopt", False)
    assert any("it would read each one layer too early" in problem for problem in exported["problems"])
    assert exported["advice"] == [f"speculators convert {tmp_path / 'theirs'} --verifier MODEL"]
    old = inspected(old_draft.save(tmp_path / "old"))
    assert (old["format"], old["speculative_tokens"], old["served"]) == ("speculators", 5, False)
    assert any(problem.startswith("norm_output is not written") for problem in old["problems"])
    assert any("does not list the layers that are read" in problem for problem in old["problems"])
    shown = CliRunner().invoke(inspect, [str(tmp_path / "theirs")], catch_exceptions=False).output
    assert "  what      EAGLE-3 (NVIDIA ModelOpt)\n" in shown
    assert "  fc.weight                                 float32   [32, 96]\n" in shown


def test_every_source_has_a_name_in_the_schema_the_command_and_a_way_back():
    from speculators.cli.convert import FORMATS as OFFERED
    from speculators.recipe.schema import fields_at

    (field,) = fields_at("convert.format")
    assert field.schema["enum"] == list(OFFERED) == ["auto", *FORMATS]
    every = [name for name in FORMATS if name not in ("mtp", "speculators")]
    assert list(TARGETS) == every
    assert list(EXPORTED) == [*every, *ENGINES]
    assert all(set(read) <= set(every) for read in ENGINES.values())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "eagle3-llama3.1-instruct-8b"),
        ("org/Draft@v2", "draft"),
        ("/some/where/My Draft/", "my-draft"),
        ("./model_1.safetensors", "model-1.safetensors"),
        ("..", "converted"),
    ],
)
def test_a_recipe_is_named_after_its_source(source, name):
    assert recipe_name(source) == name
