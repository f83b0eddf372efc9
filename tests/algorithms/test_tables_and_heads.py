"""Muon takes no matrix of any draft that is a table of tokens or gives something of the vocabulary's size."""

from __future__ import annotations

import pytest

from speculators.training.optimizers import is_hidden_matrix

ALGORITHMS = {
    "eagle": "type: eagle",
    "hass": "type: hass, judged_steps: 2",
    "eagle3": "type: eagle3, training_time_test: {steps: 3}",
    "peagle": "type: peagle, layers: 2, depths: 3",
    "dflash": "type: dflash, layers: 2, block_size: 4",
    "dspark": "type: dspark, layers: 1, block_size: 4, markov_rank: 4, teacher: unrenormalized",
    "dspark with a gate": "type: dspark, layers: 1, block_size: 4, markov_rank: 4, markov_head_type: gated, "
    "teacher: unrenormalized",
    "dspark with a memory": "type: dspark, layers: 1, block_size: 4, markov_rank: 4, markov_head_type: rnn, "
    "teacher: unrenormalized",
    "dflash2": "type: dflash2, layers: 1, block_size: 4, selector: {rank: 4, top_k: 3}, convolution: {group_size: 8}",
    "xpress": "type: xpress, layers: 1, block_size: 4, refiner: {rank: 4}, teacher: unrenormalized",
    "medusa": "type: medusa, heads: 3",
    "hydra": "type: hydra, heads: 3, layers: 2",
    "hydra with one head": "type: hydra, heads: 3, layers: 2, shared_head: true",
    "mlp_speculator": "type: mlp_speculator, heads: 3, inner_size: 16",
    "mtp": "type: mtp, steps: 3",
    "draft_model": "type: draft_model, random: {hidden_size: 16}, steps: 3",
}
VOCABULARIES = {50, 30}
"""The verifier's, and what a draft has of it: sizes that nothing else in these drafts has."""


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_muon_takes_hidden_matrices_alone(name, objective_of):
    network = objective_of(ALGORITHMS[name]).network
    matrices = {one: parameter for one, parameter in network.named_parameters() if parameter.dim() == 2}
    taken = {one for one, parameter in matrices.items() if is_hidden_matrix(network, one, parameter)}
    outside = {one for one, parameter in matrices.items() if {*parameter.shape} & {*VOCABULARIES, 1}}
    assert taken == matrices.keys() - outside
    assert taken
