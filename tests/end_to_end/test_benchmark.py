"""A whole recipe with a variant of its own, then under another load: what was made for the one serves the other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from speculators.recipe.load import load_recipe
from speculators.verifiers.random_model import write_random_model

RECIPE = """\
recipe: 1
name: variants
extends: tiny
eval:
  benchmark:
    variants: [{name: dense}, {name: speculator}, {name: copy, verifier: ./copy}]
  gates: [benchmark.copy.acceptance_length >= 1, benchmark.copy.output_tokens_per_second > 0]
"""


@pytest.mark.timeout(600)
def test_variants_are_served_one_after_another_and_a_sweep_measures_point_by_point(speculators, results, tmp_path):
    (tmp_path / "variants.yaml").write_text(RECIPE)
    random = load_recipe("tiny").recipe.verifier.random
    write_random_model(
        SimpleNamespace(**{name: getattr(random, name) for name in random.__struct_fields__}), tmp_path / "copy"
    )
    first = speculators("run", "variants.yaml", folder=tmp_path)
    assert first.returncode == 0, first.stdout
    found = results(tmp_path, "variants")
    assert list(found["benchmark"]) == ["dense", "speculator", "copy"]
    assert found["benchmark"]["copy"]["verifier"]["source"] == str(tmp_path / "copy")
    assert [gate["passed"] for gate in found["gates"]] == [True, True]
    # The copy is the same verifier, so the same draft is accepted as often.
    same = ("acceptance_length", "positions")
    assert [found["benchmark"]["copy"][name] for name in same] == [
        found["benchmark"]["speculator"][name] for name in same
    ]
    assert found["benchmark"]["dense"]["acceptance_length"] is None
    assert "copy" in (tmp_path / "runs/variants/latest/report.html").read_text()

    sweep = ("eval.benchmark.profile={type: sweep, points: 3}", "eval.benchmark.variants=[{name: speculator}]")
    second = speculators(
        "run", "variants.yaml", *(word for one in (*sweep, "eval.gates=[]") for word in ("--set", one)), folder=tmp_path
    )
    assert second.returncode == 0, second.stdout
    found = results(tmp_path, "variants")
    assert found["steps"]["checkpoint"]["status"] == "cached"
    slow, fast, between = found["benchmark"]["speculator"]["levels"]
    assert [one["profile"] for one in (slow, fast, between)] == ["synchronous", "throughput", "constant"]
    assert between["rate"] == pytest.approx((slow["requests_per_second"] + fast["requests_per_second"]) / 2)
    assert all(one["acceptance_length"] >= 1 for one in (slow, fast, between))
