"""Temperature, top-k, top-p and draws, against slow versions of them."""

from __future__ import annotations

import pytest
import torch

from speculators.decoding.request import Request
from speculators.decoding.sampling import Uniforms, choose, distributions, draw, truncated


def _slow(logits: list[float], temperature: float, top_k: int | None, top_p: float) -> list[float]:
    weights = torch.tensor(logits, dtype=torch.float64).div(temperature).softmax(-1).tolist()
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[: top_k or len(weights)]
    whole, mass, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if mass >= top_p * whole:
            break
        kept.append(i)
        mass += weights[i]
    return [weights[i] / mass if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 0.01])
def test_temperature_then_top_k_then_top_p(temperature: float, top_k: int | None, top_p: float) -> None:
    logits = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)) * 3
    requests = [Request([0], 1, temperature, top_p, top_k), Request([0], 1)]
    found = distributions(logits, requests)
    for position in range(3):
        wanted = torch.tensor(_slow(logits[0, position].tolist(), temperature, top_k, top_p))
        torch.testing.assert_close(found[0, position], wanted, atol=1e-6, rtol=1e-5)
    assert found[1].argmax(-1).tolist() == logits[1].argmax(-1).tolist()
    assert found[1].max(-1).values.tolist() == [1.0] * 3


@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_a_nucleus_is_right_whether_or_not_it_fits_the_first_guess(spread: float) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * spread
    found = truncated(logits.softmax(-1), None, 0.9)
    wanted = torch.tensor(_slow(logits.tolist(), 1.0, None, 0.9))
    assert abs(int((found > 0).sum()) - int((wanted > 0).sum())) <= 1  # float32 sums may differ by one token
    torch.testing.assert_close(found, wanted, atol=3e-4, rtol=1e-3)


def test_draws_follow_the_weights_and_never_take_a_token_of_weight_zero() -> None:
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 1.0, 0.0])
    grid = [i / 1000 for i in range(1000)]
    counts = draw(weights.expand(1000, -1), grid).bincount(minlength=6).tolist()
    assert counts == [0, 500, 0, 250, 250, 0]
    assert int(draw(weights, 0.0)) == 1
    assert int(draw(weights, 1 - 2**-53)) == 4


def test_uniforms_looked_at_are_not_used_up() -> None:
    one, other = Uniforms(3), Uniforms(3)
    ahead = one.peek(5)
    one.drop(2)
    assert one.take(3) == ahead[2:]
    assert other.take(5) == ahead
    assert Uniforms(4).take(5) != ahead
    assert all(0 <= number < 1 for number in ahead)


@pytest.mark.parametrize("size", [6, 128, 300])
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(50, 2, size, generator=generator) * (torch.rand(50, 2, size, generator=generator) > 0.4)
    weights[..., 1] = 1.0
    uniforms = torch.rand(50, 2, generator=generator, dtype=torch.float64)
    cumulative = weights.double().cumsum(-1)
    wanted = torch.searchsorted(cumulative, uniforms[..., None] * cumulative[..., -1:], right=True)[..., 0]
    assert torch.equal(draw(weights, uniforms.tolist()), wanted)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, 1.0), (0.7, None, 0.8), (1.5, None, 0.2), (1.0, 5, 0.9)]
)
def test_chosen_tokens_have_the_distribution_of_the_request(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    """Chi-square over 40,000 draws, at two positions of different logits."""
    count = 40_000
    logits = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(1)) * 2
    request = Request([0], 1, temperature, top_p, top_k)
    stream = Uniforms(7)
    found = choose(logits.expand(count, -1, -1), [request] * count, [stream.take(2) for _ in range(count)])
    wanted = distributions(logits, [request])[0]
    for position in range(2):
        expected = wanted[position].double() * count
        observed = found[:, position].bincount(minlength=30).double()
        possible = expected > 0
        assert not observed[~possible].any()
        square = float(((observed - expected)[possible] ** 2 / expected[possible]).sum())
        freedom = int(possible.sum()) - 1
        assert square < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


def test_a_choice_depends_on_its_own_number_alone() -> None:
    logits = torch.randn(6, 3, 500, generator=torch.Generator().manual_seed(2))
    requests = [Request([0], 1, 1.0, top_p) for top_p in (1.0, 0.9, 0.5, 0.1, 0.02, 0.9)]
    numbers = [Uniforms(seed).take(3) for seed in range(6)]
    together = choose(logits, requests, numbers)
    for row in range(6):
        alone = choose(logits[row : row + 1, :2], requests[row : row + 1], [numbers[row][:2]])
        assert alone[0].tolist() == together[row, :2].tolist()
