"""Where a proposal ends: by confidences worked out by hand, and never by the token that would have been next."""

import pytest
import torch

from speculators.algorithms.dspark.config import DSparkConfig
from speculators.algorithms.dspark.network import DSparkNetwork
from speculators.algorithms.dspark.proposal import DSparkProposal
from speculators.verifiers.weights import VerifierWeights

B = 4


@pytest.fixture
def make(shape, randomly_filled, head):
    def build(*, with_markov=True, confident=True):
        config = DSparkConfig(
            **shape,
            layers=2,
            block_size=B,
            mask_token_id=49,
            sample_from_anchor=True,
            markov_rank=6,
            markov_head_type="vanilla",
            enable_confidence_head=confident,
            confidence_head_with_markov=with_markov,
        )
        network = randomly_filled(DSparkNetwork(config)).double().requires_grad_(requires_grad=False)
        embedding = torch.randn(50, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        network.attach(VerifierWeights(embedding, head.weight, head.norm, head.eps))
        return network

    return build


def ask(network, choose=None, least=0.5, rows=3, k=B):
    """Rows that hold nothing read two positions each, and propose."""
    proposal = DSparkProposal(network, torch.float64)
    generator = torch.Generator().manual_seed(4)
    aux = torch.randn(rows, 2, network.config.aux_width, generator=generator, dtype=torch.float64)
    next_ids = torch.randint(0, 49, (rows, 2), generator=generator)
    cache, numbers = proposal.new_cache(rows, 12), torch.arange(rows)
    ids, lengths = proposal.propose_confident(cache, numbers, next_ids, aux, [0] * rows, [2] * rows, k, choose, least)
    return next_ids[:, -1], ids, lengths


@pytest.mark.parametrize(
    ("chance", "least", "length"),
    [(0.8, 0.5, 3), (0.8, 0.81, 0), (0.8, 0.79, 1), (0.8, 0.4, 4), (0.5, 0.3, 1), (0.99, 0.9, 4)],
)
def test_a_proposal_ends_where_the_product_of_confidences_falls_below(make, chance, least, length):
    network = make()
    network.confidence_head.proj.weight.zero_()
    network.confidence_head.proj.bias.fill_(torch.tensor(chance / (1 - chance)).log())
    assert ask(network, least=least)[2] == [length] * 3


def test_a_slot_is_trusted_by_the_token_before_it(make):
    """Only the first channel of the token before decides: certain where the token is even, else one in ten."""
    network = make()
    network.confidence_head.proj.weight.zero_()
    network.confidence_head.proj.weight[0, network.config.hidden_size] = 1.0
    network.confidence_head.proj.bias.zero_()
    odd = torch.arange(50) % 2 == 1
    network.markov_head.markov_w1.weight[:, 0] = torch.where(odd, torch.tensor(1 / 9).log(), torch.tensor(9.0).log())
    newest, ids, lengths = ask(network, least=0.5, rows=12)
    for first, tokens, length in zip(newest.tolist(), ids.tolist(), lengths, strict=True):
        chances = [0.1 if token % 2 else 0.9 for token in [first, *tokens[:-1]]]
        products = torch.tensor(chances).cumprod(0)
        assert length == int((products >= 0.5).sum())
    assert len(set(lengths)) > 1


def test_what_is_drawn_for_a_slot_does_not_decide_whether_it_is_proposed(make):
    network = make()
    kept = network.target_ids
    for slot in range(B):
        found = set()
        for drawn in range(5):
            calls = []

            def choose(logits, drawn=drawn, slot=slot, calls=calls):
                calls.append(None)
                return logits.argmax(-1) if len(calls) <= slot else torch.full((len(logits),), drawn)

            _, ids, lengths = ask(network, choose, least=0.2)
            assert ids[:, slot].tolist() == [int(kept[drawn])] * 3
            found.add(tuple(length > slot for length in lengths))
        assert len(found) == 1, f"slot {slot}"


def test_a_draft_without_the_head_foretells_nothing(make):
    assert not DSparkProposal(make(confident=False)).foretells_acceptance
    assert DSparkProposal(make(with_markov=False)).foretells_acceptance
    assert max(ask(make(with_markov=False), least=0.01)[2]) > 0
