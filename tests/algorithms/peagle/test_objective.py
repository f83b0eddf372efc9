"""The chain-sparse objective against a dense one: every element of a document in one matrix, with one mask."""

import pytest
import torch

from speculators.algorithms.chains import find_chains
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.algorithms.peagle.network import PEagleNetwork
from speculators.algorithms.peagle.objective import PEagleObjective, sampled_depths
from speculators.recipe.load import load_recipe

DEPTHS, MASK = 4, 49


def options(**changes):
    said = {"type": "peagle", "layers": 2, "depths": DEPTHS, "draft_vocab_size": 32, "aux_layers": [1, 2, 4]}
    said |= {"mask_token_id": MASK, "decay": 0.7, **changes}
    text = ", ".join(
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in said.items()
    )
    return load_recipe("tiny", sets=[f"algorithm={{{text}}}"]).recipe.algorithm


@pytest.fixture
def make(shape, randomly_filled):
    def build(chosen, **changes):
        norms = chosen.normalization
        config = PEagleConfig(
            **(shape | changes),
            layers=chosen.layers,
            norm_before_residual=norms.before_residual,
            norm_before_fc=norms.before_fc,
            mask_token_id=MASK,
        )
        return randomly_filled(PEagleNetwork(config)).double()

    return build


def noise(number):
    return torch.Generator().manual_seed(100 + number)


@pytest.fixture
def dense(plain, divergence):
    """The loss over the elements of `chains`, one document at a time."""

    def document(w, norms, layers, ids, aux, elements):
        """Outputs of depth 0 at all positions, and of `elements` (root, depth >= 1): two matrices."""
        length = len(ids) - 1
        features = torch.cat([aux[:length], w["mask_hidden"][0].expand(len(elements), -1)])
        tokens = torch.cat([ids[1:], torch.full((len(elements),), MASK)])
        positions = torch.tensor([*range(length), *(root + depth for root, depth in elements)])
        owners = [(t, 0) for t in range(length)] + elements
        seen = torch.tensor(
            [[(d == 0 and t <= root) or (t == root and 0 < d <= depth) for t, d in owners] for root, depth in owners]
        )
        if norms.before_fc:
            features = plain.rms(features, w["input_norm.weight"])
        stream = features @ w["fc.weight"].T
        for number in range(layers):
            at = f"layers.{number}."
            if number == 0:
                normed = plain.rms(stream, w[at + "hidden_norm.weight"])
                e = plain.rms(w["embed_tokens.weight"][tokens], w[at + "input_layernorm.weight"])
                x, stream = torch.cat([e, normed], -1), normed if norms.before_residual else stream
            else:
                x = plain.rms(stream, w[at + "input_layernorm.weight"])
            q, k, v = ((x @ w[f"{at}self_attn.{name}_proj.weight"].T).view(len(x), -1, 4) for name in "qkv")
            mixed = plain.attend(plain.turned(q, positions), plain.turned(k, positions), v, seen)
            stream = stream + mixed @ w[at + "self_attn.o_proj.weight"].T
            stream = stream + plain.mlp(w, at, plain.rms(stream, w[at + "post_attention_layernorm.weight"]))
        logits = plain.rms(stream, w["norm.weight"]) @ w["lm_head.weight"].T
        return dict(zip(owners, logits, strict=True))

    def loss(w, chosen, batch, chains):
        kept = w["t2d"].nonzero()[:, 0] if "t2d" in w else torch.arange(50)
        wanted = [
            (int(chains.roots[chain]), depth) for depth, alive in enumerate(chains.alive) for chain in alive.tolist()
        ]
        found = [[] for _ in range(DEPTHS)]
        start = 0
        for length in batch.lengths:
            mine = [(root - start, depth) for root, depth in wanted if start <= root < start + length]
            if mine:
                ids, aux, last = (one[start : start + length] for one in (batch.input_ids, batch.aux, batch.last))
                deeper = [one for one in mine if one[1]]
                logits = document(w, chosen.normalization, chosen.layers, ids, aux, deeper)
                for root, depth in mine:
                    found[depth].append(divergence(last[root + 1 + depth], logits[root, depth], kept))
            start += length
        means = [torch.stack(one).mean() * 0.7**depth for depth, one in enumerate(found) if one]
        return torch.stack(means).sum() if means else torch.zeros(())

    return loss


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"normalization": "{before_residual: false, before_fc: true}"}])
@pytest.mark.parametrize("is_sampled", [False, True])
def test_loss_and_gradients_are_those_of_the_dense_computation(batch, head, make, dense, changes, is_sampled):
    chosen = options(**changes)
    network = make(chosen)
    objective = PEagleObjective(network, chosen, head, compute_dtype=torch.float64)
    evaluation = objective.evaluate(batch, noise if is_sampled else None)
    evaluation.loss.backward()

    w = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        w[name].requires_grad_(parameter.requires_grad)
    chains = find_chains(batch.loss_mask, batch.lengths, DEPTHS)
    if is_sampled:
        chains = sampled_depths(chains, chosen.sampling, noise)
    wanted = dense(w, chosen, batch, chains)
    wanted.backward()
    torch.testing.assert_close(evaluation.loss, wanted, rtol=1e-9, atol=1e-12)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, w[name].grad, rtol=1e-7, atol=1e-10, msg=name)


def test_depths_are_nested_and_fall_as_the_recipe_says(make_batch):
    batch = make_batch(["0" + "1" * 101, "00" + "1" * 41])
    chains = find_chains(batch.loss_mask, batch.lengths, 6)
    sampling = options(sampling="{ratio: 0.5, least: 0.2}").sampling
    kept = sampled_depths(chains, sampling, noise)
    assert torch.equal(kept.alive[0], chains.alive[0])
    for depth in range(1, 6):
        assert set(kept.alive[depth].tolist()) <= set(kept.alive[depth - 1].tolist())
        assert len(kept.alive[depth]) == pytest.approx(max(0.5**depth, 0.2) * len(chains.roots), abs=depth + 2)
    again, other = sampled_depths(chains, sampling, noise), sampled_depths(chains, sampling, lambda n: noise(n + 7))
    assert torch.equal(again.alive[1], kept.alive[1])
    assert not torch.equal(other.alive[1], kept.alive[1])


def test_a_part_of_a_batch_has_its_summands_whatever_part_it_is(make_batch, head, make):
    """Two processes divide a batch: what is drawn for a document is the same in either, and the losses add up."""
    masks = ["0001111111", "00111111", "0111111111"]
    whole, chosen = make_batch(masks), options()
    network = make(chosen)
    objective = PEagleObjective(network, chosen, head, compute_dtype=torch.float64)
    sizes = []

    def part(batch, start, stop, noise_from):
        rows = slice(sum(batch.lengths[:start]), sum(batch.lengths[:stop]))
        fields = {name: getattr(batch, name)[rows] for name in ("input_ids", "loss_mask", "aux", "last", "argmax")}
        piece = type(batch)(lengths=batch.lengths[start:stop], **fields)
        return objective.evaluate(piece, lambda n: noise(n + noise_from), lambda own: sizes[-1])

    def remember(own):
        sizes.append(own)
        return own

    together = objective.evaluate(whole, noise, remember).loss
    apart = part(whole, 0, 1, 0).loss + part(whole, 1, 3, 1).loss
    torch.testing.assert_close(apart, together)
