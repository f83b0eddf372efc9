"""The promise of the README: one file, from nothing to a measured draft; and the second time all of it is cached."""

from __future__ import annotations

import json
import time

import pytest


def test_the_tiny_recipe_goes_from_nothing_to_a_report(speculators, results, steps, tmp_path):
    store = tmp_path / "store"
    first = speculators("run", "tiny", folder=tmp_path, store=store)
    assert first.returncode == 0, first.stdout
    found = results(tmp_path, "tiny")
    assert [name for name in steps if found["steps"][name]["status"] != "finished"] == []
    assert found["acceptance"]["holdout"]["acceptance_length"] >= 1
    assert found["benchmark"]["speculator"]["output_tokens_per_second"] > 0
    report = (tmp_path / "runs/tiny/latest/report.html").read_text()
    assert "acceptance" in report.lower()

    second = speculators("run", "tiny", folder=tmp_path, store=store, timeout=60)
    assert second.returncode == 0, second.stdout
    found = results(tmp_path, "tiny")
    assert [name for name in steps if found["steps"][name]["status"] != "cached"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_trains_a_draft_that_a_real_verifier_accepts(
    speculators, results, steps, quickstart_store, tmp_path
):
    """On the real 135M verifier. CI runs the README's quickstart first and hands its store on to this test."""
    run = speculators("run", "quickstart", folder=tmp_path, store=quickstart_store, timeout=3500)
    assert run.returncode == 0, run.stdout
    found = results(tmp_path, "quickstart")
    holdout = found["acceptance"]["holdout"]
    assert holdout["temperature"] == 0
    assert holdout["prompts"] == held_out(tmp_path), "every held-out prompt is measured"
    assert holdout["lossless"] is True
    assert holdout["acceptance_length"] > 1.35
    for variant in ("dense", "speculator"):
        assert found["benchmark"][variant]["output_tokens_per_second"] > 0

    started = time.monotonic()
    again = speculators("run", "quickstart", folder=tmp_path, store=quickstart_store, timeout=60)
    assert again.returncode == 0, again.stdout
    assert [name for name in steps if results(tmp_path, "quickstart")["steps"][name]["status"] != "cached"] == []
    print(f"all cached: {time.monotonic() - started:.1f} s")


def held_out(folder):
    """How many prompts of the run were kept out of training: the shipped ones' quarter, and some invented ones."""
    lines = (folder / "runs/quickstart/latest/steps/prompts/prompts.jsonl").read_text().splitlines()
    count = sum(json.loads(line)["split"] == "holdout" for line in lines)
    assert count >= 64
    return count
