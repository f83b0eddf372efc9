"""The chain-sparse objective against a dense one, written here in float64 as plainly as the formulas."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Batch
from speculators.algorithms.chains import find_chains
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.objective import Eagle3Objective
from speculators.data.hidden_states import NOT_TAKEN
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.shapes.eagle3 import Eagle3, Normalization, TrainingTimeTest
from speculators.recipe.shapes.losses import LossWeights

Build = Callable[..., Eagle3Network]
H, V, HEADS, KV, D = 24, 50, 6, 2, 4
EPS = 1e-5
LOSS_NAMES = ("kl", "rkl", "jsd", "ce", "tv", "nla", "lk", "top_k")


def options(**changes: Any) -> Eagle3:
    """A recipe's `algorithm` section; `loss` is a dict, `normalization` a list of names."""
    loss, norms = changes.pop("loss", {"kl": 1.0}), changes.pop("normalization", [])
    unrolled = TrainingTimeTest(steps=changes.pop("steps", 3), decay=changes.pop("decay", 0.8))
    values: dict[str, Any] = {
        "layers": 1,
        "draft_vocab_size": 32,
        "aux_layers": (1, 2, 4),
        "reduction": "token_mean",
        "teacher": "renormalized",
        "out_of_vocabulary": "keep",
        "feature_noise": 0.0,
        "train_embeddings": False,
        "train_head": True,
    }
    return Eagle3(
        training_time_test=unrolled,
        normalization=Normalization(
            **{name: name in norms for name in ("before_residual", "before_fc", "per_aux_layer", "output")}
        ),
        loss=LossWeights(
            **{name: loss.get(name, 0.0) for name in LOSS_NAMES}, ce_target=loss.get("ce_target", "teacher")
        ),
        **(values | changes),
    )


def network_for(build: Build, chosen: Eagle3, **changes: Any) -> Eagle3Network:
    norms = chosen.normalization
    return build(
        dtype=torch.float64,
        layers=chosen.layers,
        norm_before_residual=norms.before_residual,
        norm_before_fc=norms.before_fc,
        fc_norm=norms.per_aux_layer,
        norm_output=norms.output,
        **changes,
    )


MASKS = {
    "one document": ["000011111111"],
    "several documents": ["0001111", "00000111111", "011", "0000000", "0111111111111", "1", "01"],
    "gaps": ["0001110000111101", "1111100001", "0011011101111"],
    "nothing but answers": ["11111111", "111111"],
    "short answers": ["00110011000110", "0001", "00111", "0011"],
}


def batch_for(masks: list[str], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([flag == "1" for flag in "".join(masks)])
    n = len(mask)
    # As it is stored: the verifier's own choice is there only where the next token of the document is an answer's.
    answered = torch.tensor([flag == "1" for one in masks for flag in f"{one[1:]}0"])
    return Batch(
        lengths=tuple(len(one) for one in masks),
        input_ids=torch.randint(0, V, (n,), generator=generator),
        loss_mask=mask,
        aux=torch.randn(n, 3 * H, generator=generator, dtype=torch.float64),
        last=torch.randn(n, H, generator=generator, dtype=torch.float64),
        argmax=torch.where(answered, torch.randint(0, V, (n,), generator=generator), NOT_TAKEN),
    )


def verifier_head(seed: int = 5) -> VerifierHead:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64) * 0.5
    norm = 1 + 0.2 * torch.randn(H, generator=generator, dtype=torch.float64)
    return VerifierHead(weight, norm, EPS)


# The slow reference: every step at every position of every document, one document at a time.


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """[heads, D] at a position, pairs (i, i + D/2), the tables rounded to float32 as everywhere."""
    angle = position * (1.0 / 100.0 ** (torch.arange(0, D, 2).float() / D))
    cos, sin = angle.cos().double(), angle.sin().double()
    first, second = x[:, : D // 2], x[:, D // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


@dataclass
class Dense:
    weights: dict[str, torch.Tensor]
    chosen: Eagle3

    def attention(
        self, layer: int, q: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]
    ) -> torch.Tensor:
        out = []
        for head in range(HEADS):
            group = head // (HEADS // KV)
            k = torch.stack([key[group] for key in keys])
            v = torch.stack([value[group] for value in values])
            out.append((k @ q[head] / D**0.5).softmax(0) @ v)
        return self.weights[f"layers.{layer}.self_attn.o_proj.weight"] @ torch.cat(out)

    def project(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        return (self.weights[f"layers.{layer}.self_attn.{name}_proj.weight"] @ x).view(-1, D)

    def mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.weights[f"layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return down @ (torch.nn.functional.silu(gate @ x) * (up @ x))

    def document(self, ids: torch.Tensor, aux: torch.Tensor, steps: int) -> list[list[torch.Tensor]]:
        """Outputs [step][t] of all positions that have a next token; missing next tokens read token 0."""
        w, norms = self.weights, self.chosen.normalization
        length = len(ids) - 1
        states = []
        for t in range(length):
            features = aux[t]
            if norms.before_fc:
                features = rms(features, w["input_norm.weight"])
            if norms.per_aux_layer:
                parts = [rms(part, w[f"fc_norm.{i}.weight"]) for i, part in enumerate(features.chunk(3))]
                features = torch.cat(parts)
            states.append(w["fc.weight"] @ features)
        memory: list[list[list[tuple[torch.Tensor, torch.Tensor]]]] = []  # [step][layer][t] -> key, value
        outs: list[list[torch.Tensor]] = []
        for step in range(steps):
            streams = states
            memory.append([])
            for layer in range(self.chosen.layers):
                prefix = f"layers.{layer}."
                inputs, residuals = [], []
                for t in range(length):
                    if layer == 0:
                        token = int(ids[t + 1 + step]) if t + 1 + step < len(ids) else 0
                        hidden = rms(streams[t], w[prefix + "hidden_norm.weight"])
                        embedding = rms(w["embed_tokens.weight"][token], w[prefix + "input_layernorm.weight"])
                        inputs.append(torch.cat([embedding, hidden]))
                        residuals.append(hidden if norms.before_residual else streams[t])
                    else:
                        inputs.append(rms(streams[t], w[prefix + "input_layernorm.weight"]))
                        residuals.append(streams[t])
                memory[step].append(
                    [
                        (turned(self.project(layer, "k", x), t + step), self.project(layer, "v", x))
                        for t, x in enumerate(inputs)
                    ]
                )
                after = []
                for t in range(length):
                    seen = memory[0][layer][: t + 1] + [memory[j][layer][t] for j in range(1, step + 1)]
                    q = turned(self.project(layer, "q", inputs[t]), t + step)
                    keys, values = [key for key, _ in seen], [value for _, value in seen]
                    hidden = residuals[t] + self.attention(layer, q, keys, values)
                    after.append(hidden + self.mlp(layer, rms(hidden, w[prefix + "post_attention_layernorm.weight"])))
                streams = after
            outs.append(streams)
            states = [rms(out, w["norm.weight"]) for out in streams] if norms.output else streams
        return outs

    def distance(self, log_q: torch.Tensor, z: torch.Tensor, kept: torch.Tensor, following: int) -> torch.Tensor:
        """The loss mix at one position; `z` are the verifier's logits over its whole vocabulary."""
        true, q = z.softmax(0)[kept], log_q.exp()
        p = true / true.sum() if self.chosen.teacher == "renormalized" else true
        middle = (p + q) / 2
        acceptance = torch.minimum(true, q).sum()
        confidence = torch.exp(-3 * acceptance.detach())
        wanted = int(z[kept].argmax())
        if self.chosen.loss.ce_target == "data" and following in kept.tolist():
            wanted = kept.tolist().index(following)
        values = {
            "kl": (p * (p.log() - log_q)).sum(),
            "rkl": (q * (log_q - p.log())).sum(),
            "jsd": ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2,
            "ce": -log_q[wanted],
            "tv": 1 - acceptance,
            "nla": -acceptance.log(),
            "top_k": -(p * log_q)[p.argsort(descending=True)[:10]].sum(),
            "lk": confidence * (true * (true.log() - log_q)).sum() + (1 - confidence) * (1 - acceptance),
        }
        total = z.new_zeros(())
        for name, value in values.items():
            total = total + getattr(self.chosen.loss, name) * value
        return total

    def loss(self, batch: Batch, head: VerifierHead) -> torch.Tensor:
        kept = self.weights["t2d"].nonzero()[:, 0] if "t2d" in self.weights else torch.arange(V)
        steps = self.chosen.training_time_test.steps
        found: list[list[list[torch.Tensor]]] = [[] for _ in range(steps)]  # [step][document] -> losses that count
        start = 0
        for length in batch.lengths:
            ids, mask, aux, last, argmax = (
                tensor[start : start + length]
                for tensor in (batch.input_ids, batch.loss_mask, batch.aux, batch.last, batch.argmax)
            )
            start += length
            outs = self.document(ids, aux, steps)
            for step in range(steps):
                losses = []
                for t in range(length - 1):
                    new = t + 1 + step  # the newest token; all of the chain up to the predicted one must be an answer
                    if new + 1 >= length or not bool(mask[t + 1 : new + 2].all()):
                        continue
                    if self.chosen.out_of_vocabulary == "drop" and int(argmax[new]) not in kept.tolist():
                        continue
                    log_q = (
                        self.weights["lm_head.weight"] @ rms(outs[step][t], self.weights["norm.weight"])
                    ).log_softmax(0)
                    z = head.weight @ rms(last[new], head.norm)
                    losses.append(self.distance(log_q, z, kept, int(ids[new + 1])))
                found[step].append(losses)
        total = torch.zeros((), dtype=torch.float64)
        for step, documents in enumerate(found):
            everything = [loss for losses in documents for loss in losses]
            if not everything:
                continue
            if self.chosen.reduction == "token_mean":
                mean = torch.stack(everything).mean()
            elif self.chosen.reduction == "sequence_mean":
                mean = torch.stack([torch.stack(losses).mean() for losses in documents if losses]).mean()
            else:
                mean = torch.stack(everything).sum() / sum(batch.lengths)
            total = total + self.chosen.training_time_test.decay**step * mean
        return total


def check(build: Build, chosen: Eagle3, masks: list[str], chunk: int | None = None, **changes: Any) -> None:
    network = network_for(build, chosen, **changes)
    batch, head = batch_for(masks), verifier_head()
    objective = Eagle3Objective(network, chosen, head, compute_dtype=torch.float64, chunk=chunk)
    result = objective.evaluate(batch)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    sparse = dict(
        zip(trained, torch.autograd.grad(result.loss, list(trained.values()), allow_unused=True), strict=True)
    )
    expected = Dense({**dict(network.named_parameters()), **dict(network.named_buffers())}, chosen).loss(batch, head)
    dense = dict(zip(trained, torch.autograd.grad(expected, list(trained.values()), allow_unused=True), strict=True))
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-12)
    assert set(trained) - {"embed_tokens.weight", "lm_head.weight"} == {
        name for name, _ in network.named_parameters() if name not in ("embed_tokens.weight", "lm_head.weight")
    }
    for name, gradient in dense.items():
        mine = sparse[name]
        if gradient is None:
            assert mine is None or not mine.any(), name
        else:
            assert mine is not None, name
            torch.testing.assert_close(
                mine, gradient, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
def test_sparse_training_equals_dense_training(tiny_network: Build, masks: list[str], layers: int) -> None:
    check(tiny_network, options(layers=layers), masks)


@pytest.mark.parametrize(
    "norms",
    [
        ["before_residual"],
        ["before_fc"],
        ["per_aux_layer"],
        ["output"],
        ["before_residual", "before_fc", "per_aux_layer", "output"],
    ],
    ids="+".join,
)
def test_every_normalization_option(tiny_network: Build, norms: list[str]) -> None:
    check(tiny_network, options(normalization=norms), MASKS["several documents"])


@pytest.mark.parametrize("teacher", ["renormalized", "unrenormalized"])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_loss_with_either_teacher(tiny_network: Build, loss: str, teacher: str) -> None:
    check(tiny_network, options(loss={loss: 1.0}, teacher=teacher, steps=2), MASKS["gaps"])


@pytest.mark.parametrize("draft_vocab_size", [32, V])
def test_cross_entropy_with_the_text_s_own_tokens(tiny_network: Build, draft_vocab_size: int) -> None:
    chosen = options(loss={"ce": 1.0, "tv": 0.5, "ce_target": "data"}, steps=3, teacher="unrenormalized")
    check(tiny_network, chosen, MASKS["several documents"], chunk=3, draft_vocab_size=draft_vocab_size)


def test_a_mix_of_losses_and_its_terms(tiny_network: Build) -> None:
    chosen = options(loss={"kl": 0.5, "tv": 2.0, "ce": 0.1}, steps=2)
    check(tiny_network, chosen, MASKS["gaps"])
    network = network_for(tiny_network, chosen)
    measured = Eagle3Objective(network, chosen, verifier_head()).evaluate(batch_for(MASKS["gaps"])).measured
    for step in ("1", "2"):
        kl, tv, ce = (measured[f"{name}_{step}"][0] for name in ("kl", "tv", "ce"))
        assert measured[f"loss_{step}"][0] == pytest.approx(0.5 * kl + 2 * tv + 0.1 * ce)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "padded_mean"])
@pytest.mark.parametrize("out_of_vocabulary", ["keep", "drop"])
def test_every_reduction(tiny_network: Build, reduction: str, out_of_vocabulary: str) -> None:
    chosen = options(reduction=reduction, out_of_vocabulary=out_of_vocabulary)
    check(tiny_network, chosen, MASKS["several documents"])


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_any_number_of_steps_and_any_chunk(tiny_network: Build, steps: int, chunk: int) -> None:
    check(tiny_network, options(steps=steps), MASKS["gaps"], chunk=chunk)


def test_trained_embeddings_a_frozen_head_and_the_whole_vocabulary(tiny_network: Build) -> None:
    chosen = options(train_embeddings=True, train_head=False)
    check(tiny_network, chosen, MASKS["several documents"], draft_vocab_size=V)


def test_accuracy_counts_misses_outside_the_drafts_vocabulary(tiny_network: Build) -> None:
    chosen = options(steps=2, out_of_vocabulary="drop")
    network = network_for(tiny_network, chosen)
    batch = batch_for(MASKS["several documents"])
    measured = Eagle3Objective(network, chosen, verifier_head()).evaluate(batch).measured
    chains = find_chains(batch.loss_mask, batch.lengths, 2)
    for step in (0, 1):
        chosen_by_verifier = batch.argmax[chains.roots[chains.alive[step]] + 1 + step]
        assert measured[f"accuracy_{step + 1}"][1] == len(chains.alive[step])
        assert measured[f"loss_{step + 1}"][1] == int(network.t2d[chosen_by_verifier].sum()) < len(chains.alive[step])


def test_acceptance_counts_the_proposals_in_a_row_that_the_verifier_would_choose(tiny_network: Build) -> None:
    chosen = options(steps=3, normalization=["output"])
    network = network_for(tiny_network, chosen)
    weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    mask, generator = "00011111111", torch.Generator().manual_seed(3)
    batch = batch_for([mask])
    outs = Dense(weights, chosen).document(batch.input_ids, batch.aux, 3)
    assert network.target_ids is not None
    proposed = {
        (t, step): int(network.target_ids[network.logits(outs[step][t]).argmax()])
        for step in range(3)
        for t in range(10)
    }
    # A verifier that agrees with the chain rooted at 4 twice, whatever the others make of it.
    argmax = torch.randint(0, V, (11,), generator=generator)
    argmax[5], argmax[6] = proposed[4, 0], proposed[4, 1]
    argmax[7] = (proposed[4, 2] + 1) % V
    batch = Batch(batch.lengths, batch.input_ids, batch.loss_mask, batch.aux, batch.last, argmax)
    accepted = Eagle3Objective(network, chosen, verifier_head()).evaluate(batch).accepted
    assert accepted.newest.tolist() == [3, 4, 5, 6, 7, 8, 9]
    for newest, length in zip(accepted.newest.tolist(), accepted.lengths.tolist(), strict=True):
        row = 0
        while row < min(3, 10 - newest) and proposed[newest - 1, row] == int(argmax[newest + row]):
            row += 1
        assert length == row
    assert accepted.lengths[accepted.newest == 5] == 2


def test_a_batch_without_answers_has_no_loss(tiny_network: Build) -> None:
    chosen = options()
    result = Eagle3Objective(network_for(tiny_network, chosen), chosen, verifier_head()).evaluate(
        batch_for(["0000", "01"])
    )
    assert (result.loss.item(), result.measured) == (0.0, {})


def test_feature_noise_is_the_generators_and_only_with_them(tiny_network: Build) -> None:
    chosen = options(feature_noise=0.5)
    objective = Eagle3Objective(network_for(tiny_network, chosen), chosen, verifier_head())
    batch = batch_for(MASKS["gaps"])

    def loss(seed: int | None) -> float:
        noise = None if seed is None else lambda place: torch.Generator().manual_seed(seed + 10 * place)
        return objective.evaluate(batch, noise).loss.item()

    assert loss(1) == loss(1)
    assert len({loss(1), loss(2), loss(None)}) == 3
    check(tiny_network, chosen, MASKS["gaps"])  # without a generator there is none


def test_bfloat16_products_change_the_loss_and_gradients_only_a_little(tiny_network: Build) -> None:
    chosen = options(normalization=["before_fc", "before_residual"])
    batch = batch_for(["0001111111111", "0011111111"])
    found = []
    for low in (False, True):
        network = network_for(tiny_network, chosen).float()
        if low:
            mix_precision(network, torch.bfloat16)
        head = VerifierHead(verifier_head().weight.float(), verifier_head().norm.float(), EPS)
        dtype = torch.bfloat16 if low else torch.float32
        result = Eagle3Objective(network, chosen, head, compute_dtype=dtype).evaluate(batch)
        result.loss.backward()
        gradients = {
            name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
        }
        assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
        found.append((result.loss.item(), gradients))
    (exact, exact_gradients), (rounded, rounded_gradients) = found
    assert rounded == pytest.approx(exact, rel=0.02)
    assert exact_gradients.keys() == rounded_gradients.keys()
    for name, gradient in exact_gradients.items():
        assert (rounded_gradients[name] - gradient).norm() < 0.06 * gradient.norm(), name
