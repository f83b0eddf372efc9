"""Drafting with EAGLE-3 over a cache, against the definition written out without one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.proposal import Eagle3Proposal

VOCABULARY, HIDDEN = 50, 16


def _network(**options: object) -> Eagle3Network:
    torch.manual_seed(0)
    config = Eagle3Config(
        **{  # type: ignore[arg-type]
            "hidden_size": HIDDEN,
            "intermediate_size": 24,
            "attention_heads": 4,
            "key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": VOCABULARY,
            "draft_vocab_size": VOCABULARY,
            "aux_layers": (1, 2, 3),
            "rope": {"rope_type": "default", "rope_theta": 100.0},
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128,
            **options,
        }
    )
    network = Eagle3Network(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, 0.4)
    if config.has_vocabulary_map:
        kept = torch.randperm(VOCABULARY)[: config.draft_vocab_size].sort().values
        network.d2t.copy_(kept - torch.arange(len(kept)))
        network.t2d[kept] = True
    return network.requires_grad_(requires_grad=False).eval()


def _outputs(network: Eagle3Network, ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Plain causal attention over positions 0..n-1: `ids` [n] the tokens after them, `state` [n, h]."""
    tables = network.tables(torch.arange(len(ids)))
    embeddings = network.embed(ids)
    for number in range(network.config.layers):
        q, k, v, residual = network.qkv(number, embeddings, state, tables)
        heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
        attended = functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        state = network.finish_layer(number, attended[0].transpose(0, 1), residual)
    return state


def _chain(network: Eagle3Network, ids: torch.Tensor, aux: torch.Tensor, k: int) -> tuple[list[int], torch.Tensor]:
    """k tokens after `ids` (which follow positions with features `aux`), recomputing everything for each."""
    state, chain, logits = network.fuse(aux), [], []
    for _ in range(k):
        out = _outputs(network, ids, state)[-1:]
        logits.append(network.logits(out)[0])
        best = logits[-1].argmax()
        token = best if network.target_ids is None else network.target_ids[best]
        chain.append(int(token))
        ids, state = torch.cat([ids, token[None]]), torch.cat([state, network.next_state(out)])
    return chain, torch.stack(logits)


OPTIONS = [
    {},
    {"draft_vocab_size": 20, "norm_before_residual": True},
    {"norm_output": True, "fc_norm": True, "draft_vocab_size": 30},
    {"norm_before_fc": True, "norm_before_residual": True, "norm_output": True},
    {"layers": 2, "aux_layers": (2,), "key_value_heads": 4},
    {"layers": 3, "norm_output": True, "key_value_heads": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rows", [1, 4])
def test_proposals_are_those_of_the_definition_round_after_round(options: dict[str, object], rows: int) -> None:
    """Rows read different numbers of tokens each round; every chain equals one computed without any cache."""
    network = _network(**options)
    proposal = Eagle3Proposal(network)
    generator = torch.Generator().manual_seed(1)
    slots = torch.tensor([3, 1, 2, 5][:rows]) if rows > 1 else torch.tensor([2])
    ids = torch.randint(0, VOCABULARY, (rows, 40), generator=generator)
    aux = torch.randn(rows, 40, network.config.aux_width, generator=generator)
    cache = proposal.new_cache(6, 48)
    prompts = torch.randint(1, 9, (rows,), generator=generator).tolist()
    proposal.read(cache, slots, ids[:, : max(prompts)], aux[:, : max(prompts)])
    cache.crop(slots, prompts)
    lengths = prompts
    for k in (1, 4, 3, 4, 2):
        counts = torch.randint(1, 6, (rows,), generator=generator).tolist()
        width = max(counts)
        index = torch.tensor([[min(length + i, 39) for i in range(width)] for length in lengths])
        found_logits: list[torch.Tensor] = []

        def choose(logits: torch.Tensor, keep: list[torch.Tensor] = found_logits) -> torch.Tensor:
            keep.append(logits)
            return logits.argmax(-1)

        found = proposal.propose(
            cache,
            slots,
            ids.gather(1, index),
            aux.gather(1, index[..., None].expand(-1, -1, aux.shape[-1])),
            lengths,
            counts,
            k,
            choose,
        )
        lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
        assert cache.lengths[slots].tolist() == lengths
        for row, length in enumerate(lengths):
            chain, logits = _chain(network, ids[row, :length], aux[row, :length], k)
            torch.testing.assert_close(torch.stack(found_logits, 1)[row], logits, atol=2e-4, rtol=1e-3)
            assert found[row].tolist() == chain


def test_draft_ids_become_verifier_ids_through_offsets() -> None:
    network = _network(draft_vocab_size=20)
    target_ids = network.target_ids
    assert target_ids is not None
    assert target_ids.tolist() == network.t2d.nonzero()[:, 0].tolist()
    proposal, aux = Eagle3Proposal(network), torch.randn(1, 1, network.config.aux_width)
    for draft_id in range(20):
        tokens = proposal.propose(
            proposal.new_cache(1, 4),
            torch.tensor([0]),
            torch.tensor([[5]]),
            aux,
            [0],
            [1],
            1,
            lambda logits, chosen=draft_id: torch.tensor([chosen]),  # type: ignore[misc]
        )
        assert tokens.tolist() == [[int(target_ids[draft_id])]]


def test_bfloat16_products_leave_the_network_as_it_was() -> None:
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    proposal = Eagle3Proposal(network, torch.bfloat16)
    cache = proposal.new_cache(1, 8)
    aux = torch.randn(1, 2, network.config.aux_width)
    assert proposal.propose(cache, torch.tensor([0]), torch.tensor([[1, 2]]), aux, [0], [2], 3, None).shape == (1, 3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
