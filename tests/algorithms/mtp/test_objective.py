"""The head's loss and gradients are exactly those of its chains computed one by one, in every family's style."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Batch
from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.network import MtpNetwork
from speculators.algorithms.mtp.objective import MtpObjective
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe
from speculators.verifiers.latent import Latent
from speculators.verifiers.mixture import Mixture

V, H, HEADS, KV, D = 50, 24, 6, 2, 8
LATENT = Latent(heads=3, plain_dim=6, turned_dim=4, value_dim=7, key_value_rank=9, query_rank=8)
MIXTURE = Mixture(count=6, per_token=2, intermediate_size=10, shared_size=12)
SHAPES: dict[str, dict[str, Any]] = {
    "mimo": {"biases": True},
    "qwen": {"norms_heads": True, "gates_output": True, "partial": 0.5},
    "qwen with experts": {
        "style": "qwen",
        "norms_heads": True,
        "gates_output": True,
        "partial": 0.5,
        "mixture": replace(MIXTURE, gates_shared=True),
    },
    "glm": {"biases": True, "norms_heads": True, "partial": 0.5},
    "glm with experts": {
        "style": "glm",
        "biases": True,
        "norms_heads": True,
        "partial": 0.5,
        "mixture": replace(MIXTURE, corrects=True, groups=3, groups_per_token=2, scale=1.5),
    },
    "deepseek": {
        "latent": LATENT,
        "heads": LATENT.heads,
        "mixture": replace(MIXTURE, corrects=True, scale=2.5, renormalizes=False),
    },
    "deepseek, values wider than keys": {
        "style": "deepseek",
        "heads": LATENT.heads,
        "latent": replace(LATENT, value_dim=13, query_rank=0),
    },
}


@pytest.fixture(params=list(SHAPES))
def network(request: pytest.FixtureRequest, head: VerifierHead, randomly_filled: Callable[..., Any]) -> MtpNetwork:
    said = dict(SHAPES[request.param])
    heads, latent = said.pop("heads", HEADS), said.get("latent")
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": said.pop("partial", 1.0)}
    config = MtpConfig(
        style=said.pop("style", request.param),
        hidden_size=H,
        intermediate_size=40,
        attention_heads=heads,
        key_value_heads=KV if latent is None else heads,
        head_dim=D if latent is None else latent.width,
        vocab_size=V,
        aux_layers=(4,),
        rope=rope,
        rms_norm_eps=1e-5,
        max_position_embeddings=256,
        **said,
    )
    network = randomly_filled(MtpNetwork(config)).double()
    generator = torch.Generator().manual_seed(9)
    network.embedding = torch.randn(V, H, generator=generator, dtype=torch.float64)
    network.head, network.verifier_norm = head.weight, head.norm
    for name, buffer in network.named_buffers():
        if name.endswith("correction_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return network


def section(**said: Any) -> Any:
    written = ", ".join(f"{name}: {value}" for name, value in said.items())
    return load_recipe("tiny", sets=[f"algorithm={{type: mtp, {written}}}"]).recipe.algorithm


class Reference:
    """The head as plain matrices; every chain and every step by itself."""

    def __init__(self, network: MtpNetwork, plain: SimpleNamespace) -> None:
        self.config, self.plain = network.config, plain
        self.w = {name.removeprefix("mtp_layers.0."): one for name, one in network.named_parameters()}
        self.embedding, self.verifier_norm = network.embedding, network.verifier_norm
        self.bias = dict(network.named_buffers()).get("mtp_layers.0.mlp.gate.e_score_correction_bias")

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self.w[f"{name}.weight"]
        return self.plain.rms(x, 1 + weight if self.config.style == "qwen" else weight)

    def state(self, last: torch.Tensor) -> torch.Tensor:
        return last if self.config.style == "mimo" else self.plain.rms(last, self.verifier_norm)

    def heads(self, x: torch.Tensor, name: str, count: int) -> torch.Tensor:
        y = x @ self.w[f"self_attn.{name}_proj.weight"].T
        if self.config.biases:
            y = y + self.w[f"self_attn.{name}_proj.bias"]
        return y.view(count, -1)

    def turned(self, x: torch.Tensor, name: str, position: int) -> torch.Tensor:
        if self.config.norms_heads:
            x = self.norm(x, f"self_attn.{name}_norm")
        part = D if self.config.style == "mimo" else D // 2
        turned = self.plain.turned(x[None, :, :part], torch.tensor([position]))[0]
        return torch.cat([turned, x[:, part:]], -1)

    def enter(self, token: int, state: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.embedding[token]
        if position == 0 and self.config.style != "qwen":
            embedding = embedding * 0
        e, s = self.norm(embedding, "token_layernorm"), self.norm(state, "hidden_layernorm")
        residual = torch.cat([s, e] if self.config.style == "mimo" else [e, s]) @ self.w["input_proj.weight"].T
        return self.norm(residual, "input_layernorm"), residual

    def latent_turned(self, x: torch.Tensor, position: int) -> torch.Tensor:
        """Neighbours are a pair: 0 with 1, 2 with 3."""
        pairs = self.plain.turned(torch.cat([x[:, ::2], x[:, 1::2]], 1)[None], torch.tensor([position]))[0]
        return torch.stack(pairs.chunk(2, 1), 2).flatten(1)

    def latent_key_value(self, x: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = self.config.latent
        both = x @ self.w["self_attn.kv_a_proj_with_mqa.weight"].T
        vector = self.norm(both[: sizes.key_value_rank], "self_attn.kv_a_layernorm")
        heads = (vector @ self.w["self_attn.kv_b_proj.weight"].T).view(sizes.heads, -1)
        turned = self.latent_turned(both[None, sizes.key_value_rank :], position)
        keys = torch.cat([heads[:, : sizes.plain_dim], turned.expand(sizes.heads, -1)], 1)
        return keys, heads[:, sizes.plain_dim :]

    def latent_attended(self, x: torch.Tensor, position: int, seen: list[Any]) -> torch.Tensor:
        sizes = self.config.latent
        if sizes.query_rank:
            vector = self.norm(x @ self.w["self_attn.q_a_proj.weight"].T, "self_attn.q_a_layernorm")
            queries = (vector @ self.w["self_attn.q_b_proj.weight"].T).view(sizes.heads, -1)
        else:
            queries = (x @ self.w["self_attn.q_proj.weight"].T).view(sizes.heads, -1)
        queries = torch.cat(
            [queries[:, : sizes.plain_dim], self.latent_turned(queries[:, sizes.plain_dim :], position)], 1
        )
        rows = []
        for head, query in enumerate(queries):
            scores = torch.stack([query @ keys[head] for keys, _ in seen]) / sizes.key_dim**0.5
            rows.append(sum(p * values[head] for p, (_, values) in zip(scores.softmax(0), seen, strict=True)))
        return torch.cat(rows)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        mixture = self.config.mixture
        if mixture is None:
            return self.plain.mlp(self.w, "", x)
        logits = self.w["mlp.gate.weight"] @ x
        scores = torch.sigmoid(logits) if mixture.corrects else logits.softmax(0)
        ranked = scores.detach() + (self.bias if mixture.corrects else 0)
        size = mixture.count // mixture.groups
        groups = [ranked[start : start + size].topk(2).values.sum() for start in range(0, mixture.count, size)]
        open_groups = torch.stack(groups).topk(mixture.groups_per_token).indices.tolist()
        allowed = [number for number in range(mixture.count) if number // size in open_groups]
        chosen = sorted(allowed, key=lambda number: -float(ranked[number]))[: mixture.per_token]
        total = sum(scores[number] for number in chosen) if mixture.renormalizes else 1.0
        found = self.plain.mlp({f"mlp.{k.removeprefix('mlp.shared_expert.')}": w for k, w in self.w.items()}, "", x)
        if mixture.gates_shared:
            found = found * torch.sigmoid(self.w["mlp.shared_expert_gate.weight"] @ x)
        for number in chosen:
            own = {f"mlp.{k.removeprefix(f'mlp.experts.{number}.')}": w for k, w in self.w.items()}
            found = found + mixture.scale * scores[number] / total * self.plain.mlp(own, "", x)
        return found

    def key_value(self, x: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.latent is not None:
            return self.latent_key_value(x, position)
        return self.turned(self.heads(x, "k", KV), "k", position), self.heads(x, "v", KV)

    def leave(self, x: torch.Tensor, residual: torch.Tensor, position: int, seen: list[Any]) -> torch.Tensor:
        if self.config.latent is not None:
            return self.added(residual, self.latent_attended(x, position, seen))
        q, gates = self.heads(x, "q", HEADS), None
        if self.config.gates_output:
            q, gates = q[:, :D], q[:, D:]
        keys, values = torch.stack([k for k, _ in seen]), torch.stack([v for _, v in seen])
        all_seen = torch.ones(1, len(seen), dtype=torch.bool)
        attended = self.plain.attend(self.turned(q, "q", position)[None], keys, values, all_seen)[0]
        if gates is not None:
            attended = attended * torch.sigmoid(gates.flatten())
        return self.added(residual, attended)

    def added(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        hidden = residual + attended @ self.w["self_attn.o_proj.weight"].T
        return hidden + self.mlp(self.norm(hidden, "post_attention_layernorm"))

    def chain(self, ids: list[int], last: torch.Tensor, root: int, steps: int) -> list[torch.Tensor]:
        """What the head reads at each step of the chain rooted at `root`, as far as the document has tokens."""
        seen = [self.key_value(self.enter(ids[s + 1], self.state(last[s]), s)[0], s) for s in range(root)]
        state, found = self.state(last[root]), []
        for step in range(min(steps, len(ids) - root - 1)):
            x, residual = self.enter(ids[root + 1 + step], state, root + step)
            seen.append(self.key_value(x, root + step))
            out = self.leave(x, residual, root + step, seen)
            found.append(self.norm(out, "final_layernorm"))
            state = out if self.config.style == "glm" else found[-1]
        return found


def dense(
    reference: Reference, head: VerifierHead, batch: Batch, steps: int, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and how many proposals of each chain in a row are the verifier's choice."""
    losses: list[list[torch.Tensor]] = [[] for _ in range(steps)]
    lengths, start = [], 0
    for length in batch.lengths:
        ids = batch.input_ids[start : start + length].tolist()
        last = batch.last[start : start + length]
        mask, argmax = batch.loss_mask[start : start + length].tolist(), batch.argmax[start : start + length].tolist()
        for root in range(length - 2):
            if not (mask[root + 1] and mask[root + 2]):
                continue
            accepted, stands = 0, True
            for step, normed in enumerate(reference.chain(ids, last, root, steps)):
                at = root + 1 + step
                if not (at + 1 < length and mask[at] and mask[at + 1]):
                    break
                logits = head.weight @ normed
                teacher = head.weight @ reference.plain.rms(last[at], head.norm)
                losses[step].append(-logits.log_softmax(0)[teacher.argmax()])
                stands = stands and int(logits.argmax()) == argmax[at]
                accepted += stands
            lengths.append(accepted)
        start += length
    weights = [decay**step / sum(decay**i for i in range(steps)) for step in range(steps)]
    means = [torch.stack(one).mean() * w for one, w in zip(losses, weights, strict=True) if one]
    return torch.stack(means).sum(), torch.tensor(lengths)


@pytest.mark.parametrize("chunk", [None, 3])
def test_loss_gradients_and_acceptance_are_those_of_chains_computed_one_by_one(
    network: MtpNetwork, head: VerifierHead, batch: Batch, plain: SimpleNamespace, chunk: int | None
) -> None:
    objective = MtpObjective(network, section(steps=3, decay=0.6), head, compute_dtype=torch.float64, chunk=chunk)
    found = objective.evaluate(batch)
    found.loss.backward()
    gradients = {name: one.grad for name, one in network.named_parameters()}
    network.zero_grad()
    loss, lengths = dense(Reference(network, plain), head, batch, 3, 0.6)
    loss.backward()
    torch.testing.assert_close(found.loss, loss, rtol=1e-6, atol=1e-8)
    assert torch.equal(found.accepted.lengths, lengths)
    for name, parameter in network.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad  # an expert without tokens
        torch.testing.assert_close(gradients[name], expected, rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_what_is_not_drafted_from_does_not_matter(network: MtpNetwork, head: VerifierHead, make_batch: Any) -> None:
    """Neither another document of the batch, nor what stands after the last root."""
    objective = MtpObjective(network, section(steps=3), head, compute_dtype=torch.float64)
    alone, two = make_batch(["0001111"]), make_batch(["0001111", "0011111"], seed=1)
    beside = replace(two, **{
        name: torch.cat([getattr(alone, name), getattr(two, name)[7:]])
        for name in ("input_ids", "loss_mask", "aux", "last", "argmax")
    })  # fmt: skip
    first = objective.evaluate(alone).accepted.lengths
    assert torch.equal(objective.evaluate(beside).accepted.lengths[: len(first)], first)


def test_embedding_head_and_norm_of_the_verifier_are_not_trained(network: MtpNetwork) -> None:
    assert all(name.startswith("mtp_layers.0.") for name, _ in network.named_parameters())
    assert all(name.startswith("mtp_layers.0.") for name in network.state_dict())
