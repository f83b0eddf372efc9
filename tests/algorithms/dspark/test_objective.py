"""The two heads against their formulas, on the states that the block's layers give (DFlash's own test has those)."""

import math

import pytest
import torch
from torch.nn import functional

from speculators.algorithms.chains import find_chains
from speculators.algorithms.dflash.objective import block_states
from speculators.algorithms.dspark.config import DSparkConfig
from speculators.algorithms.dspark.network import DSparkNetwork
from speculators.algorithms.dspark.objective import DSparkObjective
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights

B = 4


def options(**changes):
    said = {"type": "dspark", "layers": 1, "block_size": B, "aux_layers": [1, 2, 4], "markov_rank": 6, "gamma": 2}
    said |= {"draft_vocab_size": 32, "teacher": "unrenormalized", **changes}
    text = ", ".join(f"{key}: {value}" for key, value in said.items())
    return load_recipe("tiny", sets=[f"algorithm={{{text}}}"]).recipe.algorithm


@pytest.fixture
def make(shape, randomly_filled, head):
    def build(chosen):
        fields = shape | {"draft_vocab_size": chosen.draft_vocab_size or 50}
        config = DSparkConfig(
            **fields,
            layers=1,
            block_size=B,
            mask_token_id=49,
            sample_from_anchor=True,
            markov_rank=6,
            markov_head_type=chosen.markov_head_type,
            enable_confidence_head=chosen.confidence.weight > 0,
            confidence_head_with_markov=chosen.confidence.with_markov,
        )
        network = randomly_filled(DSparkNetwork(config)).double()
        embedding = torch.randn(50, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        network.attach(VerifierWeights(embedding, head.weight, head.norm, head.eps))
        return network

    return build


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"draft_vocab_size": "null", "confidence": "{with_markov: false, weight: 0.5}"},
        {"confidence": "{weight: 0}"},
        {"markov_head_type": "gated"},
        {"markov_head_type": "rnn"},
    ],
)
def test_loss_and_gradients_are_those_of_the_formulas(batch, head, make, plain, changes):
    chosen = options(**changes)
    network = make(chosen)
    objective = DSparkObjective(network, chosen, head, compute_dtype=torch.float64)
    evaluation = objective.evaluate(batch)
    evaluation.loss.backward()
    ours = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}

    for parameter in network.parameters():
        parameter.grad = None
    chains = find_chains(batch.loss_mask, batch.lengths, B)
    states = network.norm(block_states(network, batch, chains))
    kept = torch.arange(50) if network.target_ids is None else network.target_ids
    head_of = network.markov_head
    second, memories = head_of.markov_w2.weight, {}
    falling = [math.exp(-step / 2) for step in range(B)]
    wanted = torch.zeros((), dtype=torch.float64)
    for step, alive in enumerate(chains.alive):
        rows = []
        for chain in alive.tolist():
            root = int(chains.roots[chain])
            known = network.markov_head.markov_w1.weight[batch.input_ids[root + 1 + step]]
            hidden = states[chain, step]
            y = known
            if chosen.markov_head_type == "gated":
                joint = head_of.gate_proj.weight @ torch.cat([hidden, known]) + head_of.gate_proj.bias
                y = known / (1 + (-joint).exp())
            elif chosen.markov_head_type == "rnn":
                memory = memories.get(chain, torch.zeros(6, dtype=torch.float64))
                joint = head_of.joint_proj.weight @ torch.cat([memory, known, hidden]) + head_of.joint_proj.bias
                share = 1 / (1 + (-joint[:6]).exp())
                memories[chain] = share * memory + (1 - share) * joint[6:12].tanh()
                y = joint[12:].tanh()
            log_q = (network.head_weight @ hidden + second @ y).log_softmax(0)
            p = (head.weight @ plain.rms(batch.last[root + 1 + step], head.norm)).softmax(0)[kept]
            accepted = torch.minimum(p, log_q.exp()).sum()
            loss = 0.1 * -log_q[p.argmax()] + 0.9 * (1 - accepted)
            if chosen.confidence.weight:
                read = torch.cat([hidden, known]) if chosen.confidence.with_markov else hidden
                foretold = network.confidence_head.proj.weight[0] @ read + network.confidence_head.proj.bias[0]
                entropy = functional.binary_cross_entropy_with_logits(foretold, accepted.detach())
                loss = loss + chosen.confidence.weight * entropy
            rows.append(loss)
        if rows:
            wanted = wanted + torch.stack(rows).mean() * falling[step] / sum(falling)
    wanted.backward()
    torch.testing.assert_close(evaluation.loss, wanted, rtol=1e-9, atol=1e-12)
    assert evaluation.measured["loss"][0] == pytest.approx(float(wanted.detach()) * evaluation.measured["loss"][1])
    for name, gradient in ours.items():
        other = dict(network.named_parameters())[name].grad
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-10, msg=name)
