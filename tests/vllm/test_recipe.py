"""A whole recipe with one word changed: the verifier's work is vLLM's."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine


@pytest.mark.slow
def test_a_recipe_runs_with_vllm_from_nothing_to_a_report(speculators, results, steps, tmp_path):
    engine = ("type=vllm", "eager=true", "cpu_cache=1", "start_seconds=900")
    sets = [word for one in engine for word in ("--set", f"verifier.engine.{one}")]
    sets += ["--set", "verifier.random.hidden_size=128"]  # vLLM's attention on a CPU wants heads of 32 at the least
    sets += ["--set", "eval.acceptance.speculative_tokens=auto", "--set", "eval.acceptance.most_speculative_tokens=2"]
    run = speculators("run", "tiny", *sets, folder=tmp_path, store=tmp_path / "store", timeout=1400)
    assert run.returncode == 0, run.stdout
    found = results(tmp_path, "tiny")
    assert [name for name in steps if found["steps"][name]["status"] != "finished"] == []
    assert found["benchmark"]["dense"]["acceptance_length"] is None
    assert found["benchmark"]["speculator"]["acceptance_length"] >= 1
    curve, best = found["speculative_tokens"]["curve"], found["speculative_tokens"]["best"]
    assert [len(one["levels"][0]["positions"]) for one in curve] == [1, 2]
    assert len(found["benchmark"]["speculator"]["positions"]) == best
    again = speculators("run", "tiny", *sets, folder=tmp_path, store=tmp_path / "store")
    assert {found["steps"][name]["status"] for name in steps} == {"finished"}
    assert again.returncode == 0
    assert {results(tmp_path, "tiny")["steps"][name]["status"] for name in steps} == {"cached"}
