"""What `train.execution` cannot do for an algorithm is said; what it can do is really done."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speculators.recipe.shapes.train import Execution
from speculators.training import execution
from speculators.training.loop import Silent

ALGORITHMS = {
    "eagle": "type: eagle",
    "hass": "type: hass, judged_steps: 2",
    "eagle3": "type: eagle3, training_time_test: {steps: 2}",
    "peagle": "type: peagle, layers: 2, depths: 3",
    "dflash": "type: dflash, layers: 1, block_size: 4",
    "dspark": "type: dspark, layers: 1, block_size: 4, markov_rank: 4, teacher: unrenormalized",
    "dflash2": "type: dflash2, layers: 1, block_size: 4, selector: {rank: 4, top_k: 3}, convolution: {group_size: 8}",
    "xpress": "type: xpress, layers: 1, block_size: 4, refiner: {rank: 4}, teacher: unrenormalized",
    "medusa": "type: medusa, heads: 3",
    "hydra": "type: hydra, heads: 3, layers: 2",
    "mlp_speculator": "type: mlp_speculator, heads: 3, inner_size: 16",
    "mtp": "type: mtp, steps: 3",
    "draft_model": "type: draft_model, random: {hidden_size: 16}, steps: 3",
}


class Told(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_option_that_does_nothing_says_so(name, objective_of, make_batch, monkeypatch):
    done, checkpoint = set(), execution.checkpoint

    def recomputed(*arguments, **options):
        done.add("recompute")
        return checkpoint(*arguments, **options)

    def compiled(function, **options):
        def call(*arguments):
            done.add("compile")
            return function(*arguments)

        return call

    monkeypatch.setattr(execution, "checkpoint", recomputed)
    monkeypatch.setattr(torch, "compile", compiled)
    objective, told = objective_of(ALGORITHMS[name]), Told()
    execution.apply_execution(objective, Execution(recompute=True, loss_positions=None, compile=True), told)
    batch = make_batch(["0001111111", "00111111", "011111"])
    batch = replace(batch, aux=batch.aux.float(), last=batch.last.float())
    objective.evaluate(batch).loss.backward()
    useless = {"recompute", "compile"} - done
    said = [message.partition(" does nothing: ")[0] for message in told.messages]
    assert said == [f"train.execution.{option}" for option in ("recompute", "compile") if option in useless]
