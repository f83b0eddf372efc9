"""Divided among processes, a draft learns what it learns in one; saves fit any number of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speculators.training.loop import Silent, TrainingInputs, train
from speculators.training.ranks import Ranks
from speculators.training.sharding import ShardedObjective

Build = Callable[..., TrainingInputs]


def sharded(build: Callable[[], TrainingInputs], ranks: Ranks, report: Silent | None = None) -> dict[str, Any]:
    inputs, ranks = build(), replace(ranks, is_sharded=True)
    objective = ShardedObjective(inputs.objective, ranks)
    own = sum(one.to_local().numel() for one in objective.network.parameters())  # type: ignore[attr-defined]
    assert own <= sum(one.numel() for one in objective.network.parameters()) / ranks.count + 2000
    return train(replace(inputs, objective=objective, ranks=ranks, report=report or Silent()))


def same_draft(folder: Path, other: Path) -> None:
    expected = load_file(other / "model.safetensors")
    for name, one in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(one, expected[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("optimizer", "count"), [("adamw", 2), ("muon", 4)])
def test_divided_among_processes_the_same_draft_is_trained(
    training: Build, on_ranks: Any, lines: Any, optimizer: str, count: int
) -> None:
    options: dict[str, Any] = {"precision": "float64", "epochs": 2, "optimizer": optimizer, "feature_noise": 0.1}
    train(training("alone", **options))
    alone = training("alone", **options).output
    first, *others = on_ranks(count, partial(sharded, partial(training, "many", **options)))
    assert all(other["best"] == first["best"] for other in others)
    same_draft(alone.parent / "many", alone)
    for mine, theirs in zip(lines(alone.parent / "many"), lines(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


def test_a_batch_with_fewer_documents_than_processes(training: Build, on_ranks: Any) -> None:
    options: dict[str, Any] = {"precision": "float64", "epochs": 1, "tokens_per_step": 1}
    train(training("alone", **options))
    on_ranks(2, partial(sharded, partial(training, "many", **options)))
    output = training("alone", **options).output
    same_draft(output.parent / "many", output)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_divided_training_goes_on_with_another_number_of_processes(
    training: Build, on_ranks: Any, lines: Any, optimizer: str
) -> None:
    """Two processes, then three, then one that divides nothing, then two again: the same draft in the end."""
    options: dict[str, Any] = {"precision": "float64", "optimizer": optimizer}
    train(training("whole", **options))
    folder = training("parts", **options).output

    class Stopping(Silent):
        def __init__(self) -> None:
            self.left = 4

        def progress(self, done: int, total: int, unit: str) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    def stopped(ranks: Ranks) -> None:
        sharded(partial(training, "parts", **options), ranks, Stopping() if ranks.is_first else None)

    def stopped_whole(ranks: Ranks) -> None:
        train(replace(training("parts", **options), ranks=ranks, report=Stopping()))

    for count, do in ((2, stopped), (3, stopped), (1, stopped_whole)):
        assert [type(one) for one in on_ranks(count, do)] == [KeyboardInterrupt] * count
    assert [one.name for one in sorted((folder / "checkpoints").iterdir())] == ["step-000008", "step-000012"]
    on_ranks(2, partial(sharded, partial(training, "parts", **options)))
    same_draft(folder, folder.parent / "whole")
    for mine, theirs in zip(lines(folder), lines(folder.parent / "whole"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)
