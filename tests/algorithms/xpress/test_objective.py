"""The refiner against its formulas, slot by slot, on the states that the block's layers give."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from speculators.algorithms.chains import chains_of, find_chains
from speculators.algorithms.dflash.objective import block_states
from speculators.algorithms.xpress.config import XPressConfig
from speculators.algorithms.xpress.network import XPressNetwork
from speculators.algorithms.xpress.objective import XPressObjective, before_anchors
from speculators.algorithms.xpress.passes import free_running
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights

B, R, PASSES = 4, 6, 2


@pytest.fixture
def network(shape, randomly_filled, head):
    config = XPressConfig(
        **shape, layers=1, block_size=B, mask_token_id=49, xpress_rank=R, xpress_mlp_ratio=2, num_jacobi_passes=PASSES
    )
    made = randomly_filled(XPressNetwork(config)).double()
    embedding = torch.randn(50, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    made.attach(VerifierWeights(embedding, head.weight, head.norm, head.eps))
    return made


def corrected(network, states, before):
    """Logits [B][Vd] of a block with states [B, h] and the tokens before its slots, slot by slot."""
    head = network.refiner_head
    us = [
        head.in_proj.weight
        @ torch.cat([head.down_h.weight @ h, head.down_g.weight @ states.mean(0), head.token_embed.weight[token]])
        for h, token in zip(states, before, strict=True)
    ]
    mixed = []
    for slot in range(B):
        sums = [sum(head.mix_l[c, slot, j] * us[j][c] for j in range(slot + 1)) for c in range(R)]
        u = us[slot] + torch.stack(sums)
        inner = functional.silu(head.mlp_gate.weight @ u) * (head.mlp_up.weight @ u)
        mixed.append(u + head.mlp_down.weight @ inner)
    return [network.head_weight @ h + head.readout.weight @ u for h, u in zip(states, mixed, strict=True)]


def test_loss_and_gradients_are_those_of_the_formulas(make_batch, head, network, divergence):
    """Of the true tokens, of two rounds of the draft's own, and of the head alone; all against the same verifier."""
    said = "{type: xpress, layers: 1, block_size: 4, aux_layers: [1, 2, 4], gamma: 2, loss: {kl: 1}, base_weight: 0.6"
    said += ", draft_vocab_size: 32, refiner: {rank: 6, passes: 2}, free_running: {rounds: 2, weight: 0.3}}"
    batch = make_batch(["0011111", "1111", "01111"])
    chosen = load_recipe("tiny", sets=[f"algorithm={said}"]).recipe.algorithm
    objective = XPressObjective(network, chosen, head, compute_dtype=torch.float64)
    evaluation = objective.evaluate(batch)
    evaluation.loss.backward()
    ours = {name: one.grad for name, one in network.named_parameters() if one.requires_grad}
    for parameter in network.parameters():
        parameter.grad = None

    chains = find_chains(batch.loss_mask, batch.lengths, B - 1)
    states = network.norm(block_states(network, batch, chains))
    kept, ids = network.target_ids, batch.input_ids.tolist()
    starts = chains.starts[chains.in_context].tolist()
    falling = [math.exp(-step / 2) for step in range(B - 1)]
    logits = {}  # [chain] -> readings, each [slot][Vd]
    for chain, (root, start) in enumerate(zip(chains.roots.tolist(), starts, strict=True)):
        first = ids[root] if root > start else ids[root + 1]
        true = [first, *(ids[min(root + slot, len(ids) - 1)] for slot in range(1, B))]
        alone = [network.head_weight @ h for h in states[chain]]
        readings, last = [(1.0, corrected(network, states[chain], true))], alone
        for _ in range(2):
            picked = [int(kept[one.argmax()]) for one in last]
            last = corrected(network, states[chain], [first, ids[root + 1], *picked[1:-1]])
            readings.append((0.15, last))
        logits[chain] = [*readings, (0.6, alone)]
    wanted = torch.zeros((), dtype=torch.float64)
    for step, alive in enumerate(chains.alive):
        rows = [
            share * divergence(batch.last[int(chains.roots[chain]) + 1 + step], slots[step + 1], kept)
            for chain in alive.tolist()
            for share, slots in logits[chain]
        ]
        if rows:
            wanted = wanted + torch.stack(rows).sum() / len(alive) * falling[step] / sum(falling)
    wanted.backward()
    torch.testing.assert_close(evaluation.loss, wanted, rtol=1e-9, atol=1e-12)
    for name, gradient in ours.items():
        other = dict(network.named_parameters())[name].grad
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-10, msg=name)


def test_after_p_passes_the_first_p_tokens_are_those_of_choosing_one_by_one(network):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(5, B, 24, generator=generator, dtype=torch.float64)
    anchors, before = torch.randint(0, 50, (2, 5), generator=generator)
    kept, readout = network.target_ids, network.refiner_head.readout.weight

    def likeliest(states, u):
        logits = states @ network.head_weight.T
        return kept[(logits if u is None else logits + u @ readout.T).argmax(-1)]

    with torch.no_grad():
        one_by_one = []
        for block in range(5):
            tokens = [int(before[block]), int(anchors[block])]
            for slot in range(1, B):
                padded = (tokens + [0] * B)[:B]
                tokens.append(int(kept[corrected(network, states[block], padded)[slot].argmax()]))
            one_by_one.append(tokens[2:])
        wanted = torch.tensor(one_by_one)
        passes = list(free_running(network.refiner_head, states, anchors, before, likeliest, B - 1))
        for number, u in enumerate(passes, start=1):
            assert torch.equal(likeliest(states, u)[:, 1 : 1 + number], wanted[:, :number])


def test_a_documents_first_token_is_known_by_its_place_and_not_by_its_rotary_position(make_batch) -> None:
    """Behind images rotary positions are others: they may begin above 0, and an image's stand still."""
    batch = make_batch(["0111", "00111"])
    turned = replace(batch, positions=torch.tensor([3, 4, 5, 6, 0, 0, 1, 2, 3]))
    chains = chains_of(turned, 2)
    assert chains.roots.tolist() == [0, 1, 5, 6]
    ids = batch.input_ids
    assert torch.equal(before_anchors(turned, chains), ids[[1, 1, 5, 6]])
    assert torch.equal(before_anchors(batch, chains_of(batch, 2)), ids[[1, 1, 5, 6]])
