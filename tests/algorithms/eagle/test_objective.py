"""The chain-sparse objective against a dense one: every step at every position, as the two papers write it."""

import pytest
import torch
from torch.nn import functional

from speculators.algorithms.chains import find_chains
from speculators.algorithms.eagle.config import EagleConfig
from speculators.algorithms.eagle.network import EagleNetwork
from speculators.algorithms.eagle.objective import EagleObjective
from speculators.algorithms.hass.network import HassNetwork
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe
from speculators.verifiers.weights import VerifierWeights


def options(**changes):
    said = {"type": "eagle", "judged_steps": 3, **changes}
    text = ", ".join(
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in said.items()
    )
    return load_recipe("tiny", sets=[f"algorithm={{{text}}}"]).recipe.algorithm


def verifier(head, scale=1.0):
    return VerifierWeights(torch.zeros(0), head.weight, head.norm, head.eps, scale, head.softcap)


@pytest.fixture
def make(shape, randomly_filled, head):
    def build(chosen, kind=EagleNetwork):
        sizes = {key: value for key, value in shape.items() if key not in ("draft_vocab_size", "aux_layers")}
        network = randomly_filled(kind(kind.config_type(**sizes, verifier_layers=6, fc_bias=chosen.fc_bias))).double()
        network.attach(verifier(head))
        return network

    return build


@pytest.fixture
def dense(plain, head):
    """Losses that count, one list a step, over all documents of a batch."""

    def document(w, ids, features, steps):
        """Outputs [step][t]; step n at t reads what step n-1 made at t-1, and sees base features up to t-n+1."""
        length, heads = len(ids) - 1, 6
        embedded = w["embed_tokens.weight"][ids[1:]]
        positions = torch.arange(length)
        entered, keys, values, outs = [], [], [], []
        state = features[:length]
        for n in range(steps):
            x = torch.cat([embedded, state], -1) @ w["fc.weight"].T + w.get("fc.bias", 0.0)
            q, k, v = (x @ w[f"layers.0.self_attn.{name}_proj.weight"].T for name in "qkv")
            entered.append(x)
            keys.append(plain.turned(k.view(length, 2, -1), positions))
            values.append(v.view(length, 2, -1))
            q = plain.turned(q.view(length, heads, -1), positions)
            # All keys of all steps side by side, and which of them a query at t sees.
            owners = [(j, s) for j in range(n + 1) for s in range(length)]
            seen = torch.tensor(
                [[(j == 0 and s <= t - n) or (j > 0 and s == t - (n - j)) for j, s in owners] for t in range(length)]
            )
            attended = torch.zeros(length, q.shape[1] * q.shape[2], dtype=q.dtype)
            if n < length:
                attended = torch.cat(
                    [
                        attended[:n],
                        plain.attend(q[n:], torch.cat(keys), torch.cat(values), seen[n:]),
                    ]
                )
            hidden = x + attended @ w["layers.0.self_attn.o_proj.weight"].T
            normed = plain.rms(hidden, w["layers.0.post_attention_layernorm.weight"])
            outs.append(hidden + plain.mlp(w, "layers.0.", normed))
            state = outs[-1].detach().roll(1, 0)
        return outs

    def distance(chosen, out, feature):
        p = (head.weight @ feature).softmax(0)
        log_q = (head.weight @ out).log_softmax(0)
        gap = (out - feature).abs()
        regression = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
        likeliest = p.argsort(descending=True)[:10]
        total = chosen.loss.smooth_l1 * regression - chosen.loss.soft_ce * (p * log_q).sum()
        return total - getattr(chosen.loss, "top_k", 0.0) * (p * log_q)[likeliest].sum()

    def losses(chosen, w, batch):
        steps = chosen.trained_steps
        found = [[] for _ in range(steps)]
        start = 0
        for length in batch.lengths:
            rows = slice(start, start + length)
            start += length
            ids, mask = batch.input_ids[rows], batch.loss_mask[rows]
            features = plain.rms(batch.last[rows], head.norm)
            if length < 3:
                continue
            outs = document(w, ids, features, steps)
            for n in range(steps):
                for t in range(n, length - 2):
                    root = t - n
                    if bool(mask[root + 1 : t + 3].all()):
                        found[n].append(distance(chosen, outs[n][t], features[t + 1]))
        return found

    def loss(chosen, w, batch):
        return sum(torch.stack(one).mean() for one in losses(chosen, w, batch) if one)

    loss.outs = document
    return loss


def check(chosen, network, batch, head, dense):
    objective = EagleObjective(network, chosen, head, compute_dtype=torch.float64, chunk=3)
    result = objective.evaluate(batch)
    trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
    assert "embed_tokens.weight" not in trained
    mine = torch.autograd.grad(result.loss, list(trained.values()))
    expected = dense(chosen, dict(network.named_parameters()), batch)
    theirs = torch.autograd.grad(expected, list(trained.values()))
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-12)
    for name, one, other in zip(trained, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_eagle_s_sparse_training_equals_dense_training(make, batch, head, dense):
    chosen = options()
    check(chosen, make(chosen), batch, head, dense)


@pytest.mark.parametrize("aligned", [1, 2, 4])
def test_hass_s_sparse_training_equals_dense_training(make, batch, head, dense, aligned):
    chosen = options(type="hass", aligned_steps=aligned, judged_steps=2)
    check(chosen, make(chosen, HassNetwork), batch, head, dense)


@pytest.mark.parametrize("loss", ["{smooth_l1: 0, soft_ce: 1}", "{smooth_l1: 2, soft_ce: 0.5, top_k: 0}"])
def test_every_part_of_the_loss_and_a_bias(make, make_batch, head, dense, loss):
    chosen = options(type="hass", loss=loss, fc_bias=True)
    check(chosen, make(chosen, HassNetwork), make_batch(["0001110000111101", "0011011101111"]), head, dense)


def test_documents_never_meet(make, make_batch, head):
    chosen = options(type="hass")
    network = make(chosen, HassNetwork)
    objective = EagleObjective(network, chosen, head)
    masks = ["000111111", "0011111"]
    both = make_batch(masks)
    found = objective.evaluate(both)
    changed = both.last.clone()
    changed[: len(masks[0])] += 1.0
    other = objective.evaluate(
        type(both)(both.lengths, both.input_ids.clone(), both.loss_mask, both.aux, changed, both.argmax)
    )
    second = find_chains(both.loss_mask, both.lengths, 1).numbers == 1
    assert torch.equal(found.accepted.lengths[second], other.accepted.lengths[second])
    alone = EagleObjective(network, chosen, head).evaluate(
        type(both)(
            both.lengths[1:],
            *(one[len(masks[0]) :] for one in (both.input_ids, both.loss_mask, both.aux, both.last, both.argmax)),
        )
    )
    first = objective.evaluate(
        type(both)(
            both.lengths[:1],
            *(one[: len(masks[0])] for one in (both.input_ids, both.loss_mask, both.aux, both.last, both.argmax)),
        )
    )
    for step in (1, 2, 3):
        name = f"smooth_l1_{step}"
        total = [alone.measured[name][place] + first.measured[name][place] for place in (0, 1)]
        assert found.measured[name] == pytest.approx(total)


def test_training_has_its_steps_and_validation_those_that_are_judged(make, make_batch, head):
    chosen = options(judged_steps=3, feature_noise=0.0)
    objective = EagleObjective(make(chosen), chosen, head)
    batch = make_batch(["000011111111"])
    judged = objective.evaluate(batch)
    trained = objective.evaluate(batch, lambda number: torch.Generator().manual_seed(number))
    assert objective.steps == 3
    assert {"accuracy_1", "accuracy_2", "accuracy_3"} <= set(judged.measured)
    assert "accuracy_2" not in trained.measured
    assert trained.loss.item() == pytest.approx(judged.loss.item())


def test_noise_is_the_generators_and_falls_with_a_document_s_length(make, make_batch, head):
    chosen = options(feature_noise=0.1)
    network = make(chosen)
    objective = EagleObjective(network, chosen, head)
    batch = make_batch(["000011111111", "0001111"])
    chains = find_chains(batch.loss_mask, batch.lengths, 1)
    sizes = objective._noise_sizes(batch, chains)
    assert sizes[0].item() == pytest.approx(0.1 * 512 / 12)
    assert sizes[-1].item() == pytest.approx(0.1 * 512 / 7)

    def loss(seed):
        return objective.evaluate(batch, lambda number: torch.Generator().manual_seed(seed + 10 * number)).loss.item()

    assert loss(1) == loss(1)
    assert len({loss(1), loss(2), objective.evaluate(batch).loss.item()}) == 3


def test_a_scaled_head_keeps_its_scale_and_a_cap_only_bends_the_teacher(make, make_batch, head):
    chosen = options()
    scaled = VerifierHead(head.weight, head.norm, head.eps, scale=0.5, softcap=20.0)
    network = make(chosen)
    network.attach(verifier(scaled, 0.5))
    out = torch.randn(3, head.weight.shape[1], dtype=torch.float64)
    torch.testing.assert_close(network.logits(out), out @ head.weight.T * 0.5)
    assert torch.isfinite(EagleObjective(network, chosen, scaled).evaluate(make_batch(["00011111"])).loss)


def test_bfloat16_products_change_the_loss_only_a_little(make, make_batch, head):
    chosen, batch = options(type="hass"), make_batch(["0001111111111", "0011111111"])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        network = make(chosen, HassNetwork).float()
        if dtype == torch.bfloat16:
            mix_precision(network, dtype)
        low = VerifierHead(head.weight.float(), head.norm.float(), head.eps)
        result = EagleObjective(network, chosen, low, compute_dtype=dtype).evaluate(batch)
        result.loss.backward()
        assert {one.grad.dtype for one in network.parameters() if one.grad is not None} == {torch.float32}
        found.append(result.loss.item())
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_nothing_of_the_verifier_is_saved(make):
    chosen = options()
    names = set(make(chosen).state_dict())
    assert names == {
        "embed_tokens.weight",
        "fc.weight",
        "layers.0.post_attention_layernorm.weight",
        *(f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }


def test_a_mix_that_compares_no_distributions_is_refused():
    with pytest.raises(Exception, match="compares no distributions"):
        options(loss="{soft_ce: 0}")


def test_a_config_survives_config_json():
    config = EagleConfig(
        hidden_size=8, intermediate_size=16, attention_heads=2, key_value_heads=1, head_dim=4, vocab_size=11,
        verifier_layers=5, rope={"rope_type": "default", "rope_theta": 100.0}, rms_norm_eps=1e-5,
        max_position_embeddings=64, fc_bias=True,
    )  # fmt: skip
    assert EagleConfig.from_config_json(config.to_config_json()) == config
    without = {key: value for key, value in config.to_config_json().items() if "layer_ids" not in key}
    assert EagleConfig.from_config_json(without, lambda: 5) == config


def test_smooth_l1_is_torch_s():
    gap = torch.tensor([-2.0, -0.5, 0.3, 1.5], dtype=torch.float64)
    own = torch.where(gap.abs() < 1, gap**2 / 2, gap.abs() - 0.5)
    torch.testing.assert_close(functional.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none"), own)
