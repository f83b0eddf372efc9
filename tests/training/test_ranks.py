"""Several processes train the very same draft as one: only the order of sums may differ."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speculators.training.loop import Silent, TrainingInputs, train
from speculators.training.ranks import Ranks, RanksLost
from speculators.training.shares import balanced

Build = Callable[..., TrainingInputs]


def trained(build: Callable[[], TrainingInputs], ranks: Ranks) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The result, and this process's own parameters at the end."""
    inputs = replace(build(), ranks=ranks)
    result = train(inputs)
    return result, {name: one.detach().clone() for name, one in inputs.objective.network.named_parameters()}


OPTIONS: dict[str, dict[str, Any]] = {
    "token_mean": {},
    "sequence_mean": {"reduction": "sequence_mean"},
    "padded_mean": {"reduction": "padded_mean"},
    "noise": {"feature_noise": 0.3},
    "noise and sequence_mean in AdamW": {"reduction": "sequence_mean", "feature_noise": 0.3, "optimizer": "adamw"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_one_two_and_four_processes_train_the_same_draft(
    training: Build, on_ranks: Any, lines: Any, options: dict[str, Any]
) -> None:
    options = {"precision": "float64", "epochs": 4, "validate_every": 5, **options}
    whole, _ = trained(partial(training, "alone", **options), Ranks())
    alone = training("alone", **options).output
    expected = load_file(alone / "model.safetensors")
    for count in (2, 4):
        folder = f"of {count}"
        found = on_ranks(count, partial(trained, partial(training, folder, **options)))
        first, *others = found
        for result, parameters in others:
            assert result["best"] == first[0]["best"]
            assert all(torch.equal(one, first[1][name]) for name, one in parameters.items())
        for name, one in load_file(alone.parent / folder / "model.safetensors").items():
            torch.testing.assert_close(one, expected[name], rtol=1e-9, atol=1e-10)
        assert first[0]["best"]["walk_estimate"] == whole["best"]["walk_estimate"]
        for mine, theirs in zip(lines(alone.parent / folder), lines(alone), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9)
        assert first[0]["tokens"] == whole["tokens"]


@pytest.mark.parametrize(
    ("precision", "optimizer", "apart"),
    # Muon multiplies in bfloat16 wherever the processor does, and so enlarges what other sums round.
    [("float32", "adamw", 1e-4), ("float32", "muon", 1e-3), ("bfloat16", "muon", 3e-2)],
)
def test_parameters_stay_equal_to_the_bit_in_lower_precision_too(
    training: Build, on_ranks: Any, lines: Any, precision: str, optimizer: str, apart: float
) -> None:
    options: dict[str, Any] = {"precision": precision, "epochs": 4, "optimizer": optimizer}
    trained(partial(training, "alone", **options), Ranks())
    first, *others = on_ranks(3, partial(trained, partial(training, "many", **options)))
    assert all(torch.equal(one, first[1][name]) for _, other in others for name, one in other.items())
    many, alone = (
        [line["loss"] for line in lines(training(name, **options).output) if "loss" in line]
        for name in ("many", "alone")
    )
    assert many == pytest.approx(alone, rel=apart)


def test_a_batch_with_fewer_documents_than_processes(training: Build, on_ranks: Any, lines: Any) -> None:
    """A budget of one token packs every document alone: three of four processes have none."""
    options: dict[str, Any] = {"precision": "float64", "epochs": 1, "tokens_per_step": 1, "feature_noise": 0.1}
    trained(partial(training, "alone", **options), Ranks())
    on_ranks(4, partial(trained, partial(training, "many", **options)))
    many, alone = (lines(training(name, **options).output) for name in ("many", "alone"))
    assert len(many) == len(alone) == 4
    for mine, theirs in zip(many, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


def test_a_training_goes_on_with_another_number_of_processes(training: Build, on_ranks: Any, lines: Any) -> None:
    """A signal to one of them stops all at the same step, with one save that any number of them takes up."""
    options: dict[str, Any] = {"precision": "float64", "feature_noise": 0.1}
    trained(partial(training, "whole", **options), Ranks())

    class Stopping(Silent):
        def progress(self, done: int, total: int, unit: str) -> None:
            if len(told) == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            told.append(done)

    told: list[int] = []

    def stopped(ranks: Ranks) -> None:
        report = Stopping() if ranks.number == 1 else Silent()
        train(replace(training("parts", **options), ranks=ranks, report=report))

    assert [type(one) for one in on_ranks(2, stopped)] == [KeyboardInterrupt, KeyboardInterrupt]
    folder = training("parts", **options).output
    assert [one.name for one in (folder / "checkpoints").iterdir()] == ["step-000007"]
    told.clear()
    assert [type(one) for one in on_ranks(4, stopped)] == [KeyboardInterrupt] * 4
    assert [one.name for one in sorted((folder / "checkpoints").iterdir())] == ["step-000007", "step-000014"]
    trained(partial(training, "parts", **options), Ranks())
    whole = load_file(folder.parent / "whole/model.safetensors")
    for name, one in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(one, whole[name], rtol=1e-9, atol=1e-10)
    for mine, theirs in zip(lines(folder), lines(folder.parent / "whole"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


def test_a_process_that_dies_ends_the_others(training: Build, on_ranks: Any) -> None:
    class Dying(Silent):
        def progress(self, done: int, total: int, unit: str) -> None:
            os._exit(1)

    def die(ranks: Ranks) -> None:
        train(replace(training(save_every=1), ranks=ranks, report=Dying() if ranks.number == 1 else Silent()))

    first, dead, third = on_ranks(3, die)
    assert dead is None
    assert isinstance(first, RanksLost)
    assert isinstance(third, RanksLost)


def test_work_is_divided_evenly_and_always_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(50, 2000, (64,), generator=generator).tolist()
    costs = [(length * (number % 5) // 5, length) for number, length in enumerate(lengths)]
    for count in (2, 4, 8):
        parts = balanced(costs, count)
        assert sorted(place for part in parts for place in part) == list(range(64))
        loads = [sum(costs[place][0] for place in part) for part in parts]
        assert max(loads) < 1.05 * sum(loads) / count
        assert parts == balanced(costs, count)


def test_documents_without_answers_are_divided_by_their_length() -> None:
    assert balanced([(0, 10), (0, 30), (0, 20), (5, 6)], 2) == [[3], [0, 1, 2]]
    assert balanced([(0, 10), (0, 30), (0, 20)], 2) == [[1], [0, 2]]
    assert balanced([(3, 9)], 3) == [[0], [], []]
