"""Every algorithm's tiny recipe on a GPU, a simulated one: no tensors of two devices meet, in any step or thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TINY = {file.stem: str(file) for file in sorted((HERE / "tiny").glob("*.yaml"))}
OTHERWISE = {
    "online": "data.hidden_states.mode=online",
    "muon, recomputed": "train.optimizer.type=muon&train.execution.recompute=true",
    "trees": "eval.acceptance.tree={type: dynamic, depth: 2, width: 3, nodes: 5}",
}
RECIPES = TINY | {name: f"{TINY['eagle3']}?{sets}" for name, sets in OTHERWISE.items()}
PATHS = (HERE.parents[1], HERE.parent / "shared")

pytestmark = pytest.mark.xdist_group("simulated gpu")

Found = dict[str, dict[str, Any]]

STRICT = """
import torch
from simulated_gpu import GPU, WAITS

there, here = torch.ones(3, device=GPU), torch.ones(3)
rows = torch.tensor([0, 2])
mixtures = (
    lambda: there + here,
    lambda: torch.cat([there, here]),
    lambda: here[rows.to(GPU)],
    lambda: there.copy_(here) @ here,
    lambda: torch.rand(3, device=GPU, generator=torch.Generator()),
    lambda: there.numpy(),
)
for mixture in mixtures:
    try:
        mixture()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit("a mixture of devices went through")
assert not sum(WAITS.values()), WAITS
assert (there * 2 + torch.tensor(1.0))[rows].tolist() == [3.0, 3.0]
assert there[there > 0].sum().item() == 3.0
assert +WAITS == {"tolist": 1, "index by a mask": 1, "item": 1}, WAITS
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What became of each; in a process of its own, because torch never forgets such a device."""
    printed = run(str(HERE / "on_a_gpu.py"), str(tmp_path_factory.mktemp("gpu")), *RECIPES.values())
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {line["recipe"]: line for line in lines}


def run(*arguments: str) -> str:
    """What Python prints, which must end well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_strict_and_counts_what_is_waited_for() -> None:
    run("-c", STRICT)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_does_there_what_it_does_here(name: str, found: Found) -> None:
    recipe = found[RECIPES[name]]
    assert "failed" not in recipe, f"{recipe['failed']}: {recipe['error']}"
    assert recipe["waits"]["train"], "no GPU took part"
    there, here = recipe["train"]
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-5)
    assert there["walk_estimate"] == pytest.approx(here["walk_estimate"], rel=1e-5)
    suite = recipe["acceptance"]
    assert suite["lossless"]
    assert suite["equal_prompts"] == suite["prompts"]
    assert suite["proposed_tokens"] >= suite["accepted_tokens"] >= 0
