"""The selector against its formulas, on the states that the block's layers give."""

import math

import pytest
import torch

from speculators.algorithms.chains import find_chains
from speculators.algorithms.dflash.objective import block_states
from speculators.algorithms.dflash2.config import DFlash2Config
from speculators.algorithms.dflash2.network import DFlash2Network
from speculators.algorithms.dflash2.objective import DFlash2Objective
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights

B, TOP = 4, 5


@pytest.fixture
def network(shape, randomly_filled, head):
    config = DFlash2Config(
        **(shape | {"draft_vocab_size": 50}),
        layers=1,
        block_size=B,
        mask_token_id=49,
        conv_kernel_size=2,
        conv_group_size=8,
        selector_rank=6,
        selector_top_k=TOP,
    )
    made = randomly_filled(DFlash2Network(config)).double()
    embedding = torch.randn(50, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    made.attach(VerifierWeights(embedding, head.weight, head.norm, head.eps))
    return made


def test_loss_gradients_and_choices_are_those_of_the_formulas(batch, head, network, divergence):
    said = "{type: dflash2, layers: 1, block_size: 4, aux_layers: [1, 2, 4], gamma: 2, loss: {kl: 1}"
    said += ", selector: {rank: 6, top_k: 5, weight: 0.5}}"
    chosen = load_recipe("tiny", sets=[f"algorithm={said}"]).recipe.algorithm
    objective = DFlash2Objective(network, chosen, head, compute_dtype=torch.float64)
    evaluation = objective.evaluate(batch)
    evaluation.loss.backward()
    ours = {name: parameter.grad for name, parameter in network.named_parameters()}

    for parameter in network.parameters():
        parameter.grad = None
    chains = find_chains(batch.loss_mask, batch.lengths, B - 1)
    states = network.norm(block_states(network, batch, chains))
    selector = network.candidate_selector
    falling = [math.exp(-step / 2) for step in range(B - 1)]
    wanted, injected = torch.zeros((), dtype=torch.float64), 0
    standing = dict.fromkeys(range(len(chains.roots)), 0)
    for step, alive in enumerate(chains.alive):
        rows = []
        for chain in alive.tolist():
            root = int(chains.roots[chain])
            hidden, before = states[chain, step + 1], int(batch.input_ids[root + 1 + step])
            token = int(batch.argmax[root + 1 + step])
            logits = network.head_weight @ hidden
            read = selector.predecessor_codebook[before] * (selector.hidden_projection.weight @ hidden)
            found = logits.topk(TOP).indices.tolist()
            picked = max(found, key=lambda one: (logits[one] + selector.successor_codebook[one] @ read).item())
            standing[chain] += picked == token and standing[chain] == step
            if token not in found:
                found[-1] = token
                injected += 1
            scores = torch.stack([logits[one] + selector.successor_codebook[one] @ read for one in found])
            entropy = -scores.log_softmax(0)[found.index(token)]
            rows.append(divergence(batch.last[root + 1 + step], logits, torch.arange(50)) + 0.5 * entropy)
        if rows:
            wanted = wanted + torch.stack(rows).mean() * falling[step] / sum(falling)
    wanted.backward()
    torch.testing.assert_close(evaluation.loss, wanted, rtol=1e-9, atol=1e-12)
    assert evaluation.accepted.lengths.tolist() == list(standing.values())
    assert injected, "somewhere the verifier's token was not among the candidates"
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-7, atol=1e-10, msg=name)
