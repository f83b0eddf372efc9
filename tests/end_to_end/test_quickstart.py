"""The promise of the README: one file, from nothing to a measured draft; and the second time all of it is cached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = [
    "verifier", "prompts", "answers", "tokens", "vocabulary", "hidden_states",
    "train", "checkpoint", "acceptance", "benchmark-dense", "benchmark-speculator",
]  # fmt: skip


def speculators(*arguments: str, folder: Path, timeout: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1"}
    environment.setdefault("SPECULATORS_STORE", str(folder / "store"))
    return subprocess.run(
        [sys.executable, "-m", "speculators", *arguments],
        cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True, check=False,
    )  # fmt: skip


def results(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "latest" / "results.json").read_text())


def test_the_tiny_recipe_goes_from_nothing_to_a_report(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECULATORS_STORE", str(tmp_path / "store"))
    first = speculators("run", "tiny", folder=tmp_path, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    found = results(tmp_path, "tiny")
    assert [name for name in STEPS if found["steps"][name]["status"] != "finished"] == []
    assert found["acceptance"]["holdout"]["acceptance_length"] >= 1
    assert found["benchmark"]["speculator"]["output_tokens_per_second"] > 0
    report = (tmp_path / "runs/tiny/latest/report.html").read_text()
    assert "acceptance" in report.lower()

    second = speculators("run", "tiny", folder=tmp_path, timeout=60)
    assert second.returncode == 0, second.stdout + second.stderr
    found = results(tmp_path, "tiny")
    assert [name for name in STEPS if found["steps"][name]["status"] != "cached"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_trains_a_draft_that_a_real_verifier_accepts(tmp_path):
    """On the real 135M verifier. CI runs the README's quickstart first and hands its store on to this test."""
    run = speculators("run", "quickstart", folder=tmp_path, timeout=3500)
    assert run.returncode == 0, run.stdout + run.stderr
    found = results(tmp_path, "quickstart")
    holdout = found["acceptance"]["holdout"]
    assert holdout["temperature"] == 0
    assert holdout["prompts"] == 64, "every held-out prompt is measured"
    assert holdout["lossless"] is True
    assert holdout["acceptance_length"] > 1.35
    for variant in ("dense", "speculator"):
        assert found["benchmark"][variant]["output_tokens_per_second"] > 0

    started = time.monotonic()
    again = speculators("run", "quickstart", folder=tmp_path, timeout=60)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [name for name in STEPS if results(tmp_path, "quickstart")["steps"][name]["status"] != "cached"] == []
    print(f"all cached: {time.monotonic() - started:.1f} s")
