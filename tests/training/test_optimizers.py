"""Which parameter which optimizer takes, clipping, and the rate over time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from speculators.algorithms.base import DraftNetwork
from speculators.layers.products import mix_precision, weights_rounded_once
from speculators.recipe.shapes.train import AdamW, AdamW8bit, Muon, Schedule
from speculators.training.optimizers import Optimizer, is_hidden_matrix
from speculators.training.schedules import rate

ADAMW = AdamW(learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.95), epsilon=1e-8)


class Small(DraftNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(3, 5, bias=False)
        self.fc = nn.Linear(3, 3, bias=False)
        self.norm = nn.RMSNorm(3)
        for parameter in self.parameters():
            nn.init.ones_(parameter)


class Matrix(DraftNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(64, 128, bias=False).weight


def with_gradients(network: nn.Module, value: float) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_muon_takes_hidden_matrices_only() -> None:
    network = Small()
    taken = {name for name, parameter in network.named_parameters() if is_hidden_matrix(network, name, parameter)}
    assert taken == {"fc.weight"}


def test_weight_decay_is_for_matrices_only() -> None:
    network = Small()
    with_gradients(network, 0.0)
    Optimizer(network, ADAMW).step(1.0, None)
    assert torch.allclose(network.fc.weight, torch.full((3, 3), 1 - 0.1 * 0.5))
    assert torch.equal(network.norm.weight, torch.ones(3))


def test_a_first_step_of_adamw_is_the_learning_rate_times_the_rate() -> None:
    network = Small()
    with_gradients(network, 2.0)
    Optimizer(network, AdamW(0.1, 0.0, (0.9, 0.95), 1e-8)).step(0.25, None)
    assert torch.allclose(network.norm.weight, torch.full((3,), 1 - 0.025), atol=1e-6)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_norm_is_over_all_parameters_and_told_before_clipping() -> None:
    network = Small()
    with_gradients(network, 2.0)
    count = sum(parameter.numel() for parameter in network.parameters())
    optimizer = Optimizer(network, Muon(0.1, 0.1, 0.0, 0.95))
    assert optimizer.step(1.0, 1.0) == pytest.approx(2 * math.sqrt(count))


def test_values_are_clipped_one_by_one_and_then_their_norm() -> None:
    seen: list[torch.Tensor] = []
    for clip in (None, 1.0):
        network = Small()
        with_gradients(network, 0.25)
        network.fc.weight.grad[0] = torch.tensor([-3.0, 0.1, 2.0])  # type: ignore[index]
        wanted = {name: one.grad.clamp(-0.5, 0.5) for name, one in network.named_parameters() if one.grad is not None}
        length = float(torch.cat([one.flatten() for one in wanted.values()]).norm())
        before = float(torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None]).norm())
        optimizer = Optimizer(network, ADAMW)
        assert optimizer.step(1.0, clip, 0.5) == pytest.approx(before)
        share = 1.0 if clip is None else clip / length
        for name, parameter in network.named_parameters():  # AdamW's first mean is a tenth of the gradient
            torch.testing.assert_close(
                optimizer.state_of(parameter)["exp_avg"] * 10, wanted[name] * share, rtol=1e-4, atol=1e-6
            )
        seen.append(network.fc.weight.detach())
    assert not torch.equal(*seen)


@pytest.mark.parametrize("options", [ADAMW, Muon(0.1, 0.1, 0.0, 0.95)])
def test_rounded_weights_follow_every_step(options: AdamW | Muon) -> None:
    network = Small()
    mix_precision(network, torch.bfloat16)
    optimizer, x = Optimizer(network, options), torch.ones(1, 3)
    for _ in range(3):
        with weights_rounded_once(network):
            held = network.lm_head(x) + network.fc(x).sum()
        plain = nn.functional.linear(x, network.lm_head.weight) + nn.functional.linear(x, network.fc.weight).sum()
        torch.testing.assert_close(held.float(), plain, rtol=0.03, atol=0.03)
        with_gradients(network, 1.0)
        optimizer.step(1.0, None)


def test_the_rate_warms_up_and_falls_to_its_final_share() -> None:
    cosine = Schedule(type="cosine", warmup=0.1, final=0.05)
    rates = [rate(cosine, step, 100) for step in range(100)]
    assert all(0 < one <= 1 for one in rates)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates.index(max(rates)) in range(8, 12)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)
    assert rates[12:] == sorted(rates[12:], reverse=True)
    assert {rate(Schedule(type="constant", warmup=0.0, final=0.0), step, 9) for step in range(9)} == {1.0}


def test_moments_of_matrices_in_eight_bits_follow_full_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not among the packages for development: transformers imports it in every process, for over a second each.
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'speculators[torchao]'")
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)  # only its numbers matter here
    networks = [Matrix() for _ in range(3)]
    for one in networks[1:]:
        one.load_state_dict(networks[0].state_dict())
    options = AdamW(1e-2, 0.1, (0.9, 0.95), 1e-8), AdamW8bit(1e-2, 0.1, (0.9, 0.95), 1e-8)
    full, narrow = (Optimizer(network, one) for network, one in zip(networks, options, strict=False))
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(128, 64, generator=generator) for _ in range(6)]

    def step(network: Matrix, optimizer: Optimizer, number: int) -> None:
        for parameter in network.parameters():
            parameter.grad = gradients[number].clone()
        optimizer.step(1.0 - number / 10, None)

    for number in range(4):
        step(networks[0], full, number)
        step(networks[1], narrow, number)
    torch.save(narrow.state(), tmp_path / "state.pt")
    networks[2].load_state_dict(networks[1].state_dict())
    again = Optimizer(networks[2], options[1])
    again.load(torch.load(tmp_path / "state.pt", weights_only=True))
    for number in (4, 5):
        for network, optimizer in zip(networks, (full, narrow, again), strict=True):
            step(network, optimizer, number)
    assert torch.equal(networks[1].weight, networks[2].weight)
    moved = (networks[0].weight - networks[1].weight).abs().mean()
    assert 0 < moved < 2e-3
    kept = [one for one in narrow.state()[0]["state"][0].values() if one.dim() == 2]
    assert all(type(one).__name__ == "OptimState8bit" for one in kept)
