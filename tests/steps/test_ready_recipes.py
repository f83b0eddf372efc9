"""Every ready recipe is valid, plans without a network, fits the hardware it names, and has sensible estimates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from speculators.errors import MachineError, UsageError
from speculators.pipeline.hardware import parse_hardware
from speculators.pipeline.plan import UNRESOLVED, make_plan
from speculators.pipeline.store import Store
from speculators.recipe.compose import shipped_names
from speculators.recipe.load import load_recipe
from speculators.shipped import shipped_folder
from speculators.steps import assemble
from speculators.steps.fits import check_gpus, verifier_fits
from speculators.verifiers.published import published_facts

READY = [name for name in shipped_names() if name.endswith(("-eagle3", "-eagle3-vllm", "a3b-mtp"))]
COUNTS = {"one": 1, "two": 2, "four": 4, "eight": 8}
SIZES = {"80": "H100", "141": "H200", "180": "B200"}
HOURS = (0.5, 24.0)


def stated(description: str) -> tuple[str, float]:
    """The GPUs and the bytes of disk that a description names."""
    found = re.search(r"on (\w+) GPUs? of (\d+) GB(?: and ([\d.]+) ([TG])B of disk)?", description)
    assert found, description
    disk = float(found[3] or 4) * {"T": 1e12, "G": 1e9}[found[4] or "T"]
    return f"{COUNTS[found[1]]}x {SIZES[found[2]]}", disk


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_plans_offline_and_fits_what_it_names(name: str, tmp_path: Path) -> None:
    loaded = load_recipe(name)
    recipe = loaded.recipe
    description = recipe.description or ""
    if name == "qwen3-8b-eagle3-vllm":
        description = "on one GPU of 80 GB"
    gpus, disk = stated(description)
    hardware = parse_hardware(gpus)
    facts = published_facts(recipe.verifier.model or "")
    assert facts is not None, "its config is not among recipes/verifiers"
    verifier_fits(recipe.verifier.engine, facts.weight_bytes, hardware)

    assembly = assemble(recipe, loaded.data, loaded.origins, hardware)
    plan = make_plan(assembly, Store.open(tmp_path), only_looked_at=True)
    assert plan["verifier"].hashed["external"] == {"all": UNRESOLVED}
    needed = sum(step.estimate.disk or 0 for step in plan.to_run)
    assert needed < disk
    times = {step.name: step.estimate.seconds for step in plan.steps}
    assert all(times[step] for step in ("answers", "tokens", "train"))
    assert HOURS[0] < sum(seconds or 0 for seconds in times.values()) / 3600 < HOURS[1]
    assert all((step.estimate.memory or 0) < 1e12 for step in plan.steps)


@pytest.mark.parametrize("name", [name for name in shipped_names() if name.startswith("qwen3-8b-")])
def test_training_fits_the_gpu_that_an_algorithm_s_page_names(name: str, tmp_path: Path) -> None:
    hardware = parse_hardware("1x H100")
    loaded = load_recipe(name)
    assembly = assemble(loaded.recipe, loaded.data, loaded.origins, hardware)
    plan = make_plan(assembly, Store.open(tmp_path), only_looked_at=True)
    assert 0 < (plan["train"].estimate.memory or 0) < hardware.memory
    check_gpus(loaded.recipe, plan, hardware)


def test_every_snapshot_belongs_to_a_recipe_and_says_what_its_parameters_weigh() -> None:
    files = list((shipped_folder("recipes") / "verifiers").glob("*.json"))
    models = {load_recipe(name).recipe.verifier.model for name in READY}
    drafts = (load_recipe(name).recipe.algorithm for name in shipped_names() if name.endswith("-draft-model"))
    models |= {getattr(draft, "model", None) for draft in drafts}
    assert {file.stem.replace("--", "/") for file in files} == models
    for file in files:
        known = json.loads(file.read_text())
        facts = published_facts(file.stem.replace("--", "/"))
        assert facts is not None
        if not facts.is_quantized:
            assert known["weight_bytes"] == 2 * known["parameters"]
        assert known["active_weight_bytes"] <= known["weight_bytes"] < 2.1 * known["parameters"]
        assert (facts.experts > 0) == (known["active_weight_bytes"] < known["weight_bytes"])


def test_a_small_model_as_draft_is_planned_from_what_is_known_of_it(tmp_path: Path) -> None:
    loaded = load_recipe("qwen3-8b-draft-model")
    assembly = assemble(loaded.recipe, loaded.data, loaded.origins, parse_hardware("H100"))
    plan = make_plan(assembly, Store.open(tmp_path), only_looked_at=True)
    parameters = (plan["checkpoint"].estimate.memory or 0) / 8 - 151936 * 4096  # beside an embedding, in two types
    assert parameters == pytest.approx(595_984_384, rel=1e-3)
    assert plan["train"].hashed["external"] == {"all": UNRESOLVED}


def test_a_verifier_that_does_not_fit_is_told_how_it_would() -> None:
    recipe = load_recipe("llama-3.3-70b-eagle3", sets=["verifier.engine.tensor_parallel=1"]).recipe
    with pytest.raises(MachineError, match=r"weights are 141 GB .* into 1x H100 \(72 GB .*tensor_parallel: 4"):
        verifier_fits(recipe.verifier.engine, 141_100_000_000, parse_hardware("8x H100"))
    whole = load_recipe("llama-3.3-70b-eagle3").recipe.verifier.engine
    with pytest.raises(MachineError, match="asks for 4 GPUs, and there are 2x H200"):
        verifier_fits(whole, 141_100_000_000, parse_hardware("2x H200"))


def test_training_that_does_not_fit_is_told_what_takes_less(tmp_path: Path) -> None:
    small = parse_hardware("RTX 4090")

    def checked(*sets: str) -> None:
        loaded = load_recipe("qwen3-8b-eagle3", sets=sets)
        assembly = assemble(loaded.recipe, loaded.data, loaded.origins, small)
        plan = make_plan(assembly, Store.open(tmp_path), only_looked_at=True)
        check_gpus(loaded.recipe, plan, small)

    with pytest.raises(
        MachineError, match=r"training takes about \d+ GB .*RTX 4090 has 24 GB.*`train.tokens_per_step`"
    ):
        checked()
    checked("train.tokens_per_step=4096")


@pytest.mark.parametrize("text", ["", "8x", "0x H100", "8x Abacus"])
def test_hardware_that_nobody_knows_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(UsageError, match="write such as `8x H100`, of: B200, H200"):
        parse_hardware(text)


def test_more_gpus_make_the_verifiers_work_faster_and_nothing_else(tmp_path: Path) -> None:
    loaded = load_recipe("llama-3.1-8b-eagle3")
    one, four = (
        make_plan(
            assemble(loaded.recipe, loaded.data, loaded.origins, parse_hardware(gpus)),
            Store.open(tmp_path),
            only_looked_at=True,
        )
        for gpus in ("H100", "4x H100")
    )
    for step in ("answers", "hidden_states"):
        assert one[step].estimate.seconds == pytest.approx(4 * (four[step].estimate.seconds or 0))
    assert one["train"].estimate == four["train"].estimate
    assert one["hidden_states"].estimate.disk == four["hidden_states"].estimate.disk
