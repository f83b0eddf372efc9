"""Trees instead of chains: the verifier's own text, token for token, and its own distribution."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Request
from speculators.decoding.tree import follow
from speculators.engines.transformers import VerifierModel
from speculators.evaluation.acceptance import Settings, decode, measure, round_figures
from speculators.layers.trees import StaticShape, Tree, TreeShape

SHAPE = TreeShape(depth=4, width=3, nodes=14)
STATIC = StaticShape(
    (*((rank,) for rank in range(4)), *((0, rank) for rank in range(3)), (1, 0), (0, 0, 0), (0, 0, 1), (0, 0, 0, 0))
)
LENGTHS = [22, 14, 1, 25, 6, 2, 21, 18, 3, 15]


def text(commits):
    return [token for commit in commits for token in commit.tokens]


@pytest.mark.parametrize("shape", [SHAPE, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("slots", [1, 5])
def test_greedy_text_with_trees_is_the_text_without(verifier, network, prompts, greedy_text, run_all, slots, shape):
    proposal = Eagle3Proposal(network)
    requests = [Request(prompt, length) for prompt, length in zip(prompts, LENGTHS, strict=True)]
    found = run_all(Decoder(verifier, proposal, slots=slots, capacity=50, tree=shape), requests)
    for prompt, length, commits in zip(prompts, LENGTHS, found, strict=True):
        assert text(commits) == greedy_text(prompt, length)
        assert all(commit.accepted <= commit.proposed <= shape.depth for commit in commits)
        assert all(commit.accepted == len(commit.tokens) - 1 for commit in commits)
    chains = run_all(Decoder(verifier, proposal, slots=slots, capacity=50, speculative_tokens=shape.depth), requests)
    assert sum(map(len, found)) < sum(map(len, chains)), "a tree holds the chain, so fewer rounds are needed"


@pytest.mark.parametrize("shape", [TreeShape(4, 1, 4), StaticShape(((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)))])
def test_a_tree_as_narrow_as_a_chain_makes_the_chain_s_rounds(verifier, network, prompts, run_all, shape):
    proposal = Eagle3Proposal(network)
    requests = [Request(prompt, 20) for prompt in prompts]
    narrow = Decoder(verifier, proposal, slots=3, capacity=50, tree=shape)
    chain = Decoder(verifier, proposal, slots=3, capacity=50, speculative_tokens=4)
    rounds = [
        [[(one.tokens, one.accepted, one.proposed) for one in commits] for commits in run_all(decoder, requests)]
        for decoder in (narrow, chain)
    ]
    # A chain counts proposals after the first rejected one as proposed, a tree the levels that were judged.
    for ours, theirs in zip(*rounds, strict=True):
        assert [one[:2] for one in ours] == [one[:2] for one in theirs]
        assert [min(accepted + 1, proposed) for _, accepted, proposed in theirs] == [one[2] for one in ours]


def test_a_seed_gives_the_same_text_with_trees_and_without(verifier, network, prompts, run_all):
    requests = [Request(prompt, 12, 0.7, 0.95, seed=i) for i, prompt in enumerate(prompts)]
    plain = [text(commits) for commits in run_all(Decoder(verifier, slots=4, capacity=40), requests)]
    for slots, shape in ((1, SHAPE), (4, SHAPE), (3, STATIC)):
        decoder = Decoder(verifier, Eagle3Proposal(network), slots=slots, capacity=40, tree=shape)
        assert [text(commits) for commits in run_all(decoder, requests)] == plain


def test_stop_tokens_inside_a_path_end_the_text_there(verifier, network, prompts, greedy_text, run_all):
    inside = 0
    for place in range(3, 20, 2):
        wanted, requests = [], []
        for prompt in prompts[:4]:
            whole = greedy_text(prompt, 22)
            requests.append(Request(prompt, 22, stop_ids=frozenset({whole[place]})))
            wanted.append(whole[: whole.index(whole[place]) + 1])
        decoder = Decoder(verifier, Eagle3Proposal(network), slots=4, capacity=50, tree=SHAPE)
        for commits, one in zip(run_all(decoder, requests), wanted, strict=True):
            assert text(commits) == one
            inside += commits[-1].accepted == commits[-1].proposed == len(commits[-1].tokens)
    assert inside > 0


def test_the_figures_of_an_acceptance_count_levels(verifier, network, prompts):
    settings = Settings(0.0, SHAPE.depth, 20, 4, tree=SHAPE)
    figures, answers = measure(verifier, Eagle3Proposal(network), prompts, settings)
    assert figures["tree"] == {"depth": 4, "width": 3, "nodes": 14}
    assert figures["acceptance_length"] == round_figures(answers, 4)["acceptance_length"]
    chain, _ = measure(verifier, Eagle3Proposal(network), prompts, Settings(0.0, 4, 20, 4))
    assert "tree" not in chain
    assert figures["acceptance_length"] > chain["acceptance_length"]
    assert [one.tokens for one in answers] == [one.tokens for one in decode(verifier, None, prompts, settings)]


def test_the_figures_of_a_static_tree_name_its_paths(verifier, network, prompts):
    figures, _ = measure(verifier, Eagle3Proposal(network), prompts[:2], Settings(0.0, 4, 9, 2, tree=STATIC))
    assert figures["tree"] == {"paths": STATIC.paths}


def test_what_trees_cannot_do_is_refused(verifier, network):
    with pytest.raises(ValueError, match="trees are made of the likeliest tokens"):
        Decoder(verifier, Eagle3Proposal(network), slots=1, capacity=9, tree=SHAPE, drafting="sampled")


def test_the_path_that_stands_is_the_one_the_verifier_s_choices_follow():
    tokens, parents = [7, 8, 7, 9, 7, 5], [-1, -1, 0, 0, 1, 3]
    own = [7, 9, 0, 0, 5, 0, 3]
    path = follow(own, tokens, parents, 9)
    assert (path.nodes, path.judged, path.verdict.tokens) == ([0, 3, 5], 3, [7, 9, 5, 3])
    assert follow(own, tokens, parents, 2).verdict.tokens == [7, 9, 5]
    assert follow([1, *own[1:]], tokens, parents, 9).verdict.tokens == [1]
    assert (follow(own, tokens, parents, 0).judged, follow([8, 0, 1, 0, 0, 0, 0], tokens, parents, 9).judged) == (0, 2)


MODELS = {
    "lean": (LlamaForCausalLM, LlamaConfig, {}, {}),
    "packed": (LlamaForCausalLM, LlamaConfig, {}, {"packed": True}),
    "transformers": (LlamaForCausalLM, LlamaConfig, {}, {"lean": False}),
    "window": (MistralForCausalLM, MistralConfig, {"sliding_window": 6}, {}),
}


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_pass_over_a_tree_is_many_passes_over_its_paths(tmp_path, kind):
    model, config, changes, loading = MODELS[kind]
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}  # fmt: skip
    model(config(**(sizes | changes))).save_pretrained(tmp_path)
    verifier = VerifierModel.load(tmp_path, "float32", aux_layers=(1, 3), **({"packed": False} | loading))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (2, 9), generator=generator)
    parents = torch.tensor([[-1, -1, 0, 0, 1, 2, 5], [-1, 0, 0, 1, 3, 4, 5]])
    tree = Tree(torch.randint(0, 50, parents.shape, generator=generator), parents)
    cache, rows = verifier.new_cache(3, 32), torch.tensor([0, 1])
    verifier.forward(ids[:, :8], cache, rows, None)
    lengths = [8, 5]
    cache.crop(rows, lengths)
    newest = ids[torch.arange(2), torch.tensor(lengths)][:, None]
    out = verifier.forward(torch.cat([newest, tree.tokens], 1), cache, rows, "all", tree)
    for row, length in enumerate(lengths):
        for node in range(parents.shape[1]):
            path, here = [], node
            while here >= 0:
                path.insert(0, here)
                here = int(parents[row, here])
            whole = torch.cat([ids[row, : length + 1], tree.tokens[row, path]])[None]
            alone = verifier.forward(whole, verifier.new_cache(1, 32), torch.tensor([0]), "last")
            torch.testing.assert_close(out.logits[row, node + 1], alone.logits[0, -1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(out.aux[row, node + 1], alone.aux[0, -1], rtol=1e-4, atol=1e-4)
    # The path that stands is kept as if it had been read alone.
    for row, length in enumerate(lengths):
        cache.keep(row, length + 1, [0, 2] if row == 0 else [0, 1])
    following = torch.tensor([[3], [4]])
    after = verifier.forward(following, cache, rows, "last")
    for row, (length, path) in enumerate(zip(lengths, ([0, 2], [0, 1]), strict=True)):
        whole = torch.cat([ids[row, : length + 1], tree.tokens[row, path], following[row]])[None]
        alone = verifier.forward(whole, verifier.new_cache(1, 32), torch.tensor([0]), "last")
        torch.testing.assert_close(after.logits[row, -1], alone.logits[0, -1], rtol=1e-4, atol=1e-4)
