"""An algorithm of another package: found by its entry point, trained and judged, with no line of ours for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs/examples/bigram"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an installer would leave: the package, and beside it the metadata that names its entry points."""
    place = tmp_path / "site"
    shutil.copytree(EXAMPLE / "bigram_draft", place / "bigram_draft", ignore=shutil.ignore_patterns("__pycache__"))
    metadata = place / "bigram_draft-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bigram-draft\nVersion: 0.1\n")
    declared = (EXAMPLE / "pyproject.toml").read_text()
    assert '[project.entry-points."speculators.algorithms"]\nbigram = "bigram_draft"\n' in declared
    (metadata / "entry_points.txt").write_text("[speculators.algorithms]\nbigram = bigram_draft\n")
    path = [str(place), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(part for part in path if part))
    return place


def test_it_is_a_type_like_any_other(speculators, installed: Path, tmp_path: Path) -> None:
    shown = speculators("schema", "algorithm.rank", folder=tmp_path).stdout
    assert "Rank of the table." in shown
    wrong = speculators("validate", "tiny", "--set", "algorithm={type: bigram, rnak: 3}", folder=tmp_path)
    assert wrong.returncode == 2
    assert "rnak" in wrong.stdout
    assert "did you mean `rank`?" in wrong.stdout
    (installed / "bigram_draft/schema.json").unlink()
    broken = speculators("validate", "tiny", folder=tmp_path)
    assert "bigram of an installed package is not whole" in " ".join(broken.stdout.split())


def test_it_is_trained_and_judged(speculators, installed: Path, tmp_path: Path) -> None:
    sets = ["--set", "algorithm={type: bigram, rank: 32}", "--set", "eval.benchmark=null"]
    run = speculators("run", "tiny", *sets, folder=tmp_path, timeout=500)
    assert run.returncode == 0, run.stdout
    results = json.loads((tmp_path / "runs/tiny/latest/results.json").read_text())
    assert results["algorithm"] == "bigram"
    assert results["acceptance"]["holdout"]["acceptance_length"] >= 1
    assert results["acceptance"]["holdout"]["lossless"] is True
