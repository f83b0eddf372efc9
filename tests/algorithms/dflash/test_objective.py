"""The anchor-sparse objective against a dense one: a document and all its blocks in one matrix, with one mask."""

import math

import pytest
import torch

from speculators.algorithms.blocks import random_anchors
from speculators.algorithms.chains import find_chains
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.dflash.objective import DFlashObjective
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights

B, MASK_ID = 5, 49


def options(**changes):
    said = {"type": "dflash", "layers": 2, "block_size": B, "aux_layers": [1, 2, 4], "mask_token_id": MASK_ID}
    said |= {"loss": "{kl: 1.0}", "draft_vocab_size": 32, "anchors": 3, **changes}
    text = ", ".join(f"{key}: {value}" for key, value in said.items())
    return load_recipe("tiny", sets=[f"algorithm={{{text}}}"]).recipe.algorithm


def noise(number):
    return torch.Generator().manual_seed(100 + number)


@pytest.fixture
def make(shape, randomly_filled, head):
    def build(chosen, **changes):
        size = chosen.draft_vocab_size or 50
        fields = shape | {"draft_vocab_size": size} | changes
        if chosen.sliding_window is not None:
            window = chosen.sliding_window
            fields |= {
                "window": window.size,
                "windowed_layers": chosen.windowed_layers,
                "window_is_causal": window.causal,
            }
        config = DFlashConfig(**fields, layers=chosen.layers, block_size=B, mask_token_id=MASK_ID)
        network = randomly_filled(DFlashNetwork(config)).double()
        embedding = torch.randn(50, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        network.attach(VerifierWeights(embedding, head.weight, head.norm, head.eps))
        return network

    return build


@pytest.fixture
def dense(plain, divergence):
    def document(w, chosen, ids, aux, roots):
        """Logits of every slot of every block, keyed by root and slot."""
        context = plain.rms(aux @ w["fc.weight"].T, w["hidden_norm.weight"])
        owners = [(root, slot) for root in roots for slot in range(B)]
        tokens = torch.tensor([int(ids[root + 1]) if slot == 0 else MASK_ID for root, slot in owners])
        positions = torch.tensor([root + 1 + slot for root, slot in owners])
        before = torch.tensor([[t <= root for t in range(len(ids))] for root, _ in owners])
        inside = torch.tensor([[root == other for other, _ in owners] for root, _ in owners])
        seen = torch.cat([before, inside], 1)
        back = positions[:, None] - torch.cat([torch.arange(len(ids)), positions])
        window, stream = chosen.sliding_window, w["embedding"][tokens]
        for number in range(chosen.layers):
            near = seen
            if window is not None and number in chosen.windowed_layers:
                near = seen & (back < window.size) & (back >= 0 if window.causal else back > -window.size)
            at = f"layers.{number}."
            x = plain.rms(stream, w[at + "input_layernorm.weight"])

            def project(name, x, positions, at=at):
                heads = (x @ w[f"{at}self_attn.{name}_proj.weight"].T).view(len(x), -1, 4)
                if name == "v":
                    return heads
                return plain.turned(plain.rms(heads, w[f"{at}self_attn.{name}_norm.weight"]), positions)

            everywhere = torch.arange(len(ids))
            keys, values = (
                torch.cat([project(name, context, everywhere), project(name, x, positions)]) for name in "kv"
            )
            mixed = plain.attend(project("q", x, positions), keys, values, near)
            stream = stream + mixed @ w[at + "self_attn.o_proj.weight"].T
            stream = stream + plain.mlp(w, at, plain.rms(stream, w[at + "post_attention_layernorm.weight"]))
        logits = plain.rms(stream, w["norm.weight"]) @ w["head"].T
        return dict(zip(owners, logits, strict=True))

    def terms(w, chosen, batch, chains):
        """The losses [step] of all blocks that count there, and the logits' chance of the verifier's best token."""
        kept = w["t2d"].nonzero()[:, 0] if "t2d" in w else torch.arange(50)
        found, start = {}, 0
        for length in batch.lengths:
            mine = [int(root) - start for root in chains.roots if start <= root < start + length]
            if mine:
                ids, aux, last = (one[start : start + length] for one in (batch.input_ids, batch.aux, batch.last))
                logits = document(w, chosen, ids, aux, mine)
                for step, alive in enumerate(chains.alive):
                    for chain in alive.tolist():
                        root = int(chains.roots[chain]) - start
                        if root in mine:
                            slot = logits[root, step + 1]
                            found[chain, step] = (
                                divergence(last[root + 1 + step], slot, kept),
                                slot,
                                last[root + 1 + step],
                            )
            start += length
        return found

    return terms


def weights_of(network):
    w = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        w[name].requires_grad_(parameter.requires_grad)
    return w | {"embedding": network.embedding, "head": network.head_weight.detach()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": 1, "draft_vocab_size": "null"},
        {"sliding_window": "{size: 3, layers: all}"},
        {"sliding_window": "{size: 3, layers: [1], causal: false}"},
        {"sliding_window": "{size: 7, layers: [0]}"},
    ],
)
@pytest.mark.parametrize("is_sampled", [False, True])
def test_loss_and_gradients_are_those_of_the_dense_computation(batch, head, make, dense, changes, is_sampled):
    chosen = options(**changes, weights="{type: exponential, gamma: 3}")
    network = make(chosen)
    objective = DFlashObjective(network, chosen, head, compute_dtype=torch.float64)
    evaluation = objective.evaluate(batch, noise if is_sampled else None)
    evaluation.loss.backward()

    w = weights_of(network)
    chains = find_chains(batch.loss_mask, batch.lengths, B - 1)
    if is_sampled:
        chains = random_anchors(chains, 3, noise)
    found = dense(w, chosen, batch, chains)
    shares = [math.exp(-step / 3) for step in range(B - 1)]
    wanted = torch.zeros((), dtype=torch.float64)
    for step, alive in enumerate(chains.alive):
        if len(alive):
            mean = torch.stack([found[chain, step][0] for chain in alive.tolist()]).mean()
            wanted = wanted + mean * shares[step] / sum(shares)
    wanted.backward()
    torch.testing.assert_close(evaluation.loss, wanted, rtol=1e-9, atol=1e-12)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, w[name].grad, rtol=1e-7, atol=1e-10, msg=name)


def test_dpace_weighs_cross_entropies_by_the_drafts_own_chances(batch, head, make, dense, plain):
    chosen = options(weights="{type: dpace, alpha: 0.5}", loss="{ce: 1.0}")
    network = make(chosen)
    evaluation = DFlashObjective(network, chosen, head, compute_dtype=torch.float64).evaluate(batch)
    evaluation.loss.backward()

    w = weights_of(network)
    kept = w["t2d"].nonzero()[:, 0]
    chains = find_chains(batch.loss_mask, batch.lengths, B - 1)
    cross = {
        place: -slot.log_softmax(0)[(head.weight[kept] @ plain.rms(last, head.norm)).argmax()]
        for place, (_, slot, last) in dense(w, chosen, batch, chains).items()
    }
    wanted = torch.zeros((), dtype=torch.float64)
    for step, alive in enumerate(chains.alive):
        for chain in alive.tolist():
            weight, product = 0.0, 1.0
            for later in range(B - 1):
                if (chain, later) not in cross:
                    break
                product *= 0.5 * math.exp(-float(cross[chain, later].detach())) + 0.5
                weight += product if later >= step else 0.0
            wanted = wanted + weight * cross[chain, step] / len(alive) / (B - 1)
    wanted.backward()
    torch.testing.assert_close(evaluation.loss, wanted, rtol=1e-9, atol=1e-12)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, w[name].grad, rtol=1e-7, atol=1e-10, msg=name)


def test_the_verifiers_embedding_and_head_are_neither_trained_nor_saved(head, make):
    network = make(options(draft_vocab_size="null"))
    DFlashObjective(network, options(draft_vocab_size="null"), head, compute_dtype=torch.float64)
    assert not {"embedding", "head", "lm_head.weight"} & set(network.state_dict())
    reduced = make(options())
    DFlashObjective(reduced, options(), head, compute_dtype=torch.float64)
    assert "lm_head.weight" in reduced.state_dict()
    assert not reduced.lm_head.weight.requires_grad
