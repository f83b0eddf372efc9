"""Recipes done step by step on a simulated GPU: `on_a_gpu.py FOLDER RECIPE[?SET&SET]...` prints a JSON object a line.

    {"recipe": "eagle3", "waits": {"train": {"item": 59}}, "train": {...}, "acceptance": {...}}
    {"recipe": "eagle3", "failed": "train", "error": "..."}

`train` is the training's best validation, on the GPU and again, with the same artifacts, on the processor.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from random_heads import add_head
from simulated_gpu import GPU, WAITS
from tiny_families import FAMILIES

from speculators.algorithms import building
from speculators.engines import transformers as engine
from speculators.pipeline.plan import ordered
from speculators.pipeline.step import Context, Step
from speculators.recipe.load import load_recipe
from speculators.steps import assemble
from speculators.training import inputs, muon

OF_ALL = ("verifier", "prompts", "answers", "tokens")
"""Steps that are the same for all recipes with the same verifier."""
BESIDE = ("benchmark", "report")

open_inputs = inputs.open_inputs


def main() -> None:
    """Do all recipes, whatever becomes of any, in float32: the simulated GPU has no autocast."""
    for module in (engine, building, inputs, muon):
        module.product_dtype = lambda wanted, place="cpu": torch.float32
    folder = Path(sys.argv[1])
    for number, named in enumerate(sys.argv[2:]):
        path, _, sets = named.partition("?")
        place = folder / str(number)
        place.mkdir(parents=True)
        found = done(Path(path), sets.split("&") if sets else [], place, folder / "of-all")
        print(json.dumps({"recipe": named, **found}), flush=True)


def done(recipe: Path, sets: list[str], folder: Path, of_all: Path) -> dict[str, Any]:
    """What became of one recipe."""
    if recipe.stem == "mtp":  # its verifier has a head, and lies beside it
        FAMILIES["glm-4-moe"].write(folder / "verifier")
        add_head(folder / "verifier")
        of_all = folder / "of-all"
    os.chdir(folder)
    loaded = load_recipe(str(shutil.copy(recipe, folder)), sets=sets)
    assembly = assemble(loaded.recipe, loaded.data)
    made: dict[str, Path] = {}
    waits: dict[str, dict[str, int]] = {}
    found: dict[str, Any] = {"waits": waits}
    for step in ordered(assembly.steps):
        if step.name.startswith(BESIDE):
            continue
        output = made[step.name] = (of_all if step.name in OF_ALL else folder / "steps") / step.name
        if output.exists():
            continue
        read = {name: made[name] for name in step.inputs}
        try:
            use(GPU)
            WAITS.clear()
            run(step, assembly.view(step.reads), read, output)
            waits[step.name] = dict(WAITS)
            if step.name == "train":
                use(torch.device("cpu"))
                again = folder / "again"
                run(step, assembly.view(step.reads), read, again)
                found["train"] = [json.loads((one / "result.json").read_text())["best"] for one in (output, again)]
        except Exception:  # noqa: BLE001  the caller wants to know of it, and of the other recipes
            shutil.rmtree(output, ignore_errors=True)
            return {"failed": step.name, "error": traceback.format_exc()}
    (suite,) = json.loads((made["acceptance"] / "acceptance.json").read_text())["suites"]["holdout"].values()
    return found | {"acceptance": suite}


def use(device: torch.device) -> None:
    """Let verifiers and drafts be on a device from now on."""
    engine.choose_device = lambda name: device
    inputs.open_inputs = partial(open_inputs, device=device)


def run(step: Step, config: Any, read: Mapping[str, Path], output: Path) -> None:
    """Do one step."""
    output.mkdir(parents=True)
    report: Any = SimpleNamespace(progress=ignored, metric=ignored, message=ignored)
    step.run(Context(config=config, inputs=read, output=output, report=report))


def ignored(*_: Any) -> None:
    """Tell nobody."""


if __name__ == "__main__":
    main()
