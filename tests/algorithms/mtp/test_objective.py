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

V, H, HEADS, KV, D = 50, 24, 6, 2, 8
SHAPES: dict[str, dict[str, Any]] = {
    "mimo": {"biases": True},
    "qwen": {"norms_heads": True, "gates_output": True, "partial": 0.5},
    "glm": {"biases": True, "norms_heads": True, "partial": 0.5},
}


@pytest.fixture(params=list(SHAPES))
def network(request: pytest.FixtureRequest, head: VerifierHead, randomly_filled: Callable[..., Any]) -> MtpNetwork:
    said = dict(SHAPES[request.param])
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": said.pop("partial", 1.0)}
    config = MtpConfig(
        style=request.param,
        hidden_size=H,
        intermediate_size=40,
        attention_heads=HEADS,
        key_value_heads=KV,
        head_dim=D,
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
        part = D // 2 if self.config.style != "mimo" else D
        turned = self.plain.turned(x[None, :, :part], torch.tensor([position]))[0]
        return torch.cat([turned, x[:, part:]], -1)

    def enter(self, token: int, state: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.embedding[token]
        if position == 0 and self.config.style != "qwen":
            embedding = embedding * 0
        e, s = self.norm(embedding, "token_layernorm"), self.norm(state, "hidden_layernorm")
        residual = torch.cat([s, e] if self.config.style == "mimo" else [e, s]) @ self.w["input_proj.weight"].T
        return self.norm(residual, "input_layernorm"), residual

    def key_value(self, x: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.turned(self.heads(x, "k", KV), "k", position), self.heads(x, "v", KV)

    def leave(self, x: torch.Tensor, residual: torch.Tensor, position: int, seen: list[Any]) -> torch.Tensor:
        q, gates = self.heads(x, "q", HEADS), None
        if self.config.gates_output:
            q, gates = q[:, :D], q[:, D:]
        keys, values = torch.stack([k for k, _ in seen]), torch.stack([v for _, v in seen])
        all_seen = torch.ones(1, len(seen), dtype=torch.bool)
        attended = self.plain.attend(self.turned(q, "q", position)[None], keys, values, all_seen)[0]
        if gates is not None:
            attended = attended * torch.sigmoid(gates.flatten())
        hidden = residual + attended @ self.w["self_attn.o_proj.weight"].T
        return hidden + self.plain.mlp(self.w, "", self.norm(hidden, "post_attention_layernorm"))

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
        last, aux = (one[start : start + length] for one in (batch.last, batch.aux))
        mask, argmax = batch.loss_mask[start : start + length].tolist(), batch.argmax[start : start + length].tolist()
        for root in range(length - 2):
            if not (mask[root + 1] and mask[root + 2]):
                continue
            accepted, stands = 0, True
            for step, normed in enumerate(reference.chain(ids, aux, root, steps)):
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
    batch = replace(batch, aux=batch.aux[:, :H])
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
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_what_is_not_drafted_from_does_not_matter(network: MtpNetwork, head: VerifierHead, make_batch: Any) -> None:
    """Neither another document of the batch, nor what stands after the last root."""
    objective = MtpObjective(network, section(steps=3), head, compute_dtype=torch.float64)
    alone, two = make_batch(["0001111"], streams=1), make_batch(["0001111", "0011111"], seed=1, streams=1)
    beside = replace(two, **{
        name: torch.cat([getattr(alone, name), getattr(two, name)[7:]])
        for name in ("input_ids", "loss_mask", "aux", "last", "argmax")
    })  # fmt: skip
    first = objective.evaluate(alone).accepted.lengths
    assert torch.equal(objective.evaluate(beside).accepted.lengths[: len(first)], first)


def test_embedding_head_and_norm_of_the_verifier_are_not_trained(network: MtpNetwork) -> None:
    assert all(name.startswith("mtp_layers.0.") for name, _ in network.named_parameters())
    assert all(name.startswith("mtp_layers.0.") for name in network.state_dict())
