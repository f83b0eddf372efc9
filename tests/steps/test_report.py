"""The report step waits for exactly the figures its recipe will have, and writes the page where the run lies."""

from types import SimpleNamespace

from speculators.pipeline.step import Context
from speculators.steps.report import steps


def recipe(acceptance=True, variants=("dense", "speculator"), converts=False):
    benchmark = SimpleNamespace(variants=[SimpleNamespace(name=name) for name in variants]) if variants else None
    judged = SimpleNamespace(acceptance=object() if acceptance else None, benchmark=benchmark)
    return SimpleNamespace(eval=judged, converts=converts)


def test_the_report_waits_for_what_the_recipe_measures():
    (full,) = steps(recipe())
    assert full.inputs == ("train", "checkpoint", "acceptance", "benchmark-dense", "benchmark-speculator")
    assert not full.cached
    assert steps(recipe(acceptance=False, variants=()))[0].inputs == ("train", "checkpoint")
    assert steps(recipe(variants=("dense",)))[0].inputs == ("train", "checkpoint", "acceptance", "benchmark-dense")
    assert steps(recipe(variants=(), converts=True))[0].inputs == ("convert", "checkpoint", "acceptance")


def test_the_page_lies_in_the_run_folder(tmp_path):
    said = []
    folder = tmp_path
    (folder / "plan.json").write_text('{"recipe": {"name": "small"}, "steps": [{"name": "train", "inputs": []}]}')
    report = SimpleNamespace(message=said.append)
    (step,) = steps(recipe())
    step.run(Context(config=SimpleNamespace(), inputs={}, output=folder, report=report))
    assert "<h1>small</h1>" in (folder / "report.html").read_text(encoding="utf-8")
    assert said == [f"report: {folder / 'report.html'}"]
