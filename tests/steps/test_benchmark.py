"""The benchmark's steps: what each variant depends on, which verifiers it takes, and a server that dies under it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from speculators.errors import StepError
from speculators.evaluation.points import SYNCHRONOUS
from speculators.evaluation.served_points import OPEN_SLOTS, slots
from speculators.pipeline.plan import make_plan
from speculators.pipeline.step import Context
from speculators.pipeline.store import Store
from speculators.recipe.load import load_recipe
from speculators.recipe.shapes.eval import Concurrent, Constant, Sweep
from speculators.steps import assemble
from speculators.steps.benchmark import obtain_own, steps
from speculators.verifiers.random_model import write_random_model

SHAPE = {
    "layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "attention_heads": 4,
    "key_value_heads": 2,
    "vocab_size": 512,
}


def write_verifier(folder: Path, seed: int = 1, **shape: int) -> Path:
    write_random_model(SimpleNamespace(**SHAPE | shape, seed=seed), folder)
    return folder


def variants(*more: str) -> list[str]:
    return [f"eval.benchmark.variants=[{', '.join(('{name: dense}', '{name: speculator}', *more))}]"]


def keys(store: Path, *more: str) -> dict[str, str]:
    loaded = load_recipe("tiny", sets=variants(*more))
    plan = make_plan(assemble(loaded.recipe, loaded.data), Store.open(store))
    return {step.name: step.key for step in plan.steps if step.name.startswith("benchmark")}


def test_a_variant_is_made_again_when_its_weights_change_and_leaves_the_others_alone(tmp_path):
    folder = write_verifier(tmp_path / "int8")
    alone = keys(tmp_path / "store")
    both = f"{{name: int8, verifier: {folder}}}", f"{{name: int8-dense, verifier: {folder}, draft: false}}"
    before = keys(tmp_path / "store", *both)
    assert list(before) == ["benchmark-dense", "benchmark-speculator", "benchmark-int8", "benchmark-int8-dense"]
    assert before.items() >= alone.items()
    moved = folder.rename(tmp_path / "elsewhere")
    assert keys(tmp_path / "store", *(text.replace(str(folder), str(moved)) for text in both)) == before
    write_verifier(folder, seed=2)
    after = keys(tmp_path / "store", *both)
    assert {name for name in before if before[name] != after[name]} == {"benchmark-int8", "benchmark-int8-dense"}


def test_only_a_variant_with_the_draft_waits_for_it(tmp_path):
    folder = write_verifier(tmp_path / "int8")
    more = f"{{name: int8, verifier: {folder}}}", f"{{name: int8-dense, verifier: {folder}, draft: false}}"
    found = {step.name: "checkpoint" in step.inputs for step in steps(load_recipe("tiny", sets=variants(*more)).recipe)}
    assert list(found.values()) == [False, True, True, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 600}, "another vocabulary size than the recipe's verifier, 600 instead of 512"),
        ({"hidden_size": 32}, "another hidden size than the recipe's verifier, 32 instead of 64"),
        ({"layers": 3}, "another number of layers than the recipe's verifier, 3 instead of 4"),
    ],
)
def test_another_model_is_no_variant(tmp_path, change, said):
    other = write_verifier(tmp_path / "other", **change)
    recipes = write_verifier(tmp_path / "recipes")
    recipe = load_recipe("tiny", sets=variants(f"{{name: other, verifier: {other}}}")).recipe
    (own,) = (step.run.keywords["own"] for step in steps(recipe) if step.name == "benchmark-other")
    context = Context(config=SimpleNamespace(), inputs={}, output=tmp_path, report=SimpleNamespace(message=print))
    with pytest.raises(StepError, match=said):
        obtain_own(own, recipes, context)


def test_the_server_decodes_as_many_requests_as_the_load_has_streams():
    assert slots(Concurrent(levels=(4, 32, 1)), 2) == 32
    assert slots(Constant(rates=(3.0,)), 2) == 2
    assert slots(Sweep(points=2), 64) == OPEN_SLOTS


@pytest.fixture
def prompts(tmp_path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    rows = [{"split": "holdout", "messages": [{"content": f"Count to {number}."}]} for number in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def kill_the_server(command: str, generated: int) -> None:
    """Kill the server below this process as soon as it has written `generated` tokens."""
    from speculators.engines.process import read
    from speculators.engines.prometheus import parse

    def found() -> psutil.Process | None:
        below = psutil.Process().children(recursive=True)
        return next((one for one in below if command in (line := one.cmdline()) and "tied" not in str(line)), None)

    while True:
        time.sleep(0.02)
        server = found()
        ports = [one.laddr.port for one in server.net_connections() if one.status == "LISTEN"] if server else []
        if ports and parse(read(f"http://127.0.0.1:{ports[0]}/metrics"))["generation_tokens_total"][0] >= generated:
            server.kill()
            return


def test_a_server_killed_in_the_middle_is_told_and_leaves_nothing_behind(run_step, make_recipe, verifier, prompts):
    (step, _) = steps(load_recipe("tiny").recipe)
    recipe = make_recipe(eval__benchmark__requests_per_level=64, eval__benchmark__max_tokens=32)
    recipe["verifier"]["trust_remote_code"] = False
    others = psutil.Process().children(recursive=True)  # of tests before this one, such as a tracker of shared memory
    killing = threading.Thread(target=kill_the_server, args=("serve", 100))
    killing.start()
    with pytest.raises(StepError, match=r"the server ended with code -9 while it was needed"):
        run_step(step, recipe, verifier=verifier, prompts=prompts)
    killing.join()
    left_running = {" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True) if one not in others}
    assert left_running == set()
    left = {path.name for path in (prompts.parent / step.name).iterdir()}
    assert "benchmark.json" not in left
    assert "prompts.jsonl" not in left


def test_every_point_has_speed_latency_and_what_it_was(run_step, make_recipe, verifier, prompts):
    (step, _) = steps(load_recipe("tiny").recipe)
    recipe = make_recipe()
    recipe["verifier"]["trust_remote_code"] = False
    output, told = run_step(step, recipe, verifier=verifier, prompts=prompts)
    found = json.loads((output / "benchmark.json").read_text())
    (level,) = found["levels"]
    assert (level["profile"], level["streams"], level["rate"]) == (SYNCHRONOUS.profile, 1, None)
    assert level["output_tokens_per_second"] > 0
    for name in ("inter_token_latency_ms", "time_to_first_token_ms", "request_latency_s"):
        assert list(level[name]) == ["mean", "p50", "p90", "p95", "p99"]
        assert 0 < level[name]["p50"] <= level[name]["p90"] <= level[name]["p95"] <= level[name]["p99"]
    assert (found["verifier"], found["draft"], found["acceptance_length"]) == (None, False, None)
    assert told.progressed == [(1, 1, "points")]
