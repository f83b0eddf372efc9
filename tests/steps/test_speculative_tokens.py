"""The number of speculative tokens that is fastest stands in the checkpoint, and what was measured is kept."""

from __future__ import annotations

import json

import pytest

from speculators.steps.speculative_tokens import fastest


def tried(number: int, rate: float) -> dict[str, float]:
    return {"speculative_tokens": number, "output_tokens_per_second": rate}


@pytest.mark.parametrize(
    ("rates", "best"), [([9.0, 12.0, 11.0], 2), ([9.0, 12.0, 12.0], 2), ([5.0], 1), ([1.0, 2.0, 3.0], 3)]
)
def test_the_fastest_wins_and_of_equals_the_cheapest(rates: list[float], best: int) -> None:
    assert fastest([tried(number, rate) for number, rate in enumerate(rates, start=1)]) == best


def test_the_winner_is_written_into_the_checkpoint_and_measured_with(speculators, results, tmp_path):
    sets = ["eval.acceptance.speculative_tokens=auto", "eval.acceptance.most_speculative_tokens=2"]
    asked = [word for one in (*sets, "eval.benchmark.variants=[{name: speculator}]") for word in ("--set", one)]
    run = speculators("run", "tiny", *asked, folder=tmp_path)
    assert run.returncode == 0, run.stdout
    latest, found = tmp_path / "runs/tiny/latest", results(tmp_path, "tiny")
    curve = found["speculative_tokens"]["curve"]
    assert [one["speculative_tokens"] for one in curve] == [1, 2]
    assert [len(one["levels"][0]["positions"]) for one in curve] == [1, 2]
    best = max(curve, key=lambda one: one["output_tokens_per_second"])["speculative_tokens"]
    config = json.loads((latest / "steps/checkpoint/config.json").read_text())
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == best
    assert found["speculative_tokens"]["best"] == found["acceptance"]["holdout"]["speculative_tokens"] == best
    assert len(found["benchmark"]["speculator"]["positions"]) == best
    assert (latest / "draft-length.png").is_file()
    assert {path.name for path in (latest / "steps/speculative_tokens").iterdir()} == {
        "artifact.json",
        "speculative_tokens.json",
    }
