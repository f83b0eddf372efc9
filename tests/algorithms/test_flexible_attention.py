"""Whatever an algorithm attends to, FlexAttention makes the same loss and the same gradients of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speculators.layers.flexible_attention import flexible_block_attention, flexible_chain_attention

ALGORITHMS = {
    "eagle": "type: eagle",
    "hass": "type: hass, judged_steps: 3",
    "eagle3": "type: eagle3, training_time_test: {steps: 4}",
    "eagle3 of two layers": "type: eagle3, layers: 2, training_time_test: {steps: 3}",
    "peagle": "type: peagle, layers: 2, depths: 3",
    "dflash": "type: dflash, layers: 2, block_size: 4",
    "dflash through windows": "type: dflash, layers: 2, block_size: 4, sliding_window: {size: 3, layers: [0]}",
    "mtp": "type: mtp, steps: 3",
    "draft_model": "type: draft_model, random: {hidden_size: 16}, steps: 3",
}


@pytest.mark.usefixtures("flexible_gradients")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_learns_the_same(name, objective_of, make_batch):
    batch = make_batch(["0001111111", "00111111", "011111", "0000", "011"])
    batch = replace(batch, aux=batch.aux.float(), last=batch.last.float())
    found, calls = {}, []
    for way in ("plain", "flexible"):
        objective = objective_of(ALGORITHMS[name])
        network = objective.network
        if way == "flexible":
            assert network.attends
            for attention in (flexible_chain_attention, flexible_block_attention):
                counted = lambda *given, attention=attention: calls.append(attention) or attention(*given)  # noqa: E731
                setattr(network, attention.__name__.removeprefix("flexible_"), counted)
        evaluation = objective.evaluate(batch)
        evaluation.loss.backward()
        gradients = {name: one.grad for name, one in network.named_parameters() if one.grad is not None}
        found[way] = evaluation.loss.detach(), gradients
    assert calls
    assert found["flexible"][1].keys() == found["plain"][1].keys()
    torch.testing.assert_close(found["flexible"], found["plain"], rtol=1e-4, atol=1e-6)
