"""Every loss against its definition, written with plain softmaxes in float64, and its gradient against autograd's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import pytest
import torch

from speculators.losses.distributions import LOSSES, Comparison, Target, mix

V, KEPT, ROWS = 41, 23, 17
Teacher = Literal["whole", "renormalized", "unrenormalized"]
TEACHERS: tuple[Teacher, ...] = ("whole", "renormalized", "unrenormalized")


def logits(seed: int, size: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(ROWS, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def kept(teacher: Teacher) -> torch.Tensor:
    return torch.arange(V) if teacher == "whole" else torch.arange(0, 2 * KEPT, 2)[:KEPT] % V


def target_of(z: torch.Tensor, teacher: Teacher, following: torch.Tensor | None = None) -> Target:
    """The verifier's logits z [n, V] over the draft's vocabulary, as training hands them over."""
    total = None if teacher == "whole" else z.logsumexp(-1)
    return Target(z[:, kept(teacher)], total, teacher != "unrenormalized", following)


def defined(x: torch.Tensor, z: torch.Tensor, teacher: Teacher, wanted: list[int] | None) -> dict[str, torch.Tensor]:
    """Every loss at one position, from the draft's logits x [Vd] and the verifier's z [V]; `wanted` are the hard ids.

    Sums over the vocabulary, token by token where that is the definition.
    """
    q = x.softmax(0)
    true = z.softmax(0)[kept(teacher)]
    p = true / true.sum() if teacher == "renormalized" else true
    accepted = torch.stack([min(a, b) for a, b in zip(true, q, strict=True)]).sum()
    share = torch.exp(-3 * accepted.detach())
    middle = (p + q) / 2
    hard = int(true.argmax()) if wanted is None else wanted[0]
    likeliest = sorted(range(len(p)), key=lambda v: -float(p[v]))[:10]
    return {
        "kl": (p * (p / q).log()).sum(),
        "rkl": (q * (q / p).log()).sum(),
        "jsd": ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2,
        "ce": -q[hard].log(),
        "soft_ce": -(p * q.log()).sum(),
        "top_k": -torch.stack([p[v] * q[v].log() for v in likeliest]).sum(),
        "tv": 1 - accepted,
        "nla": -accepted.log(),
        "lk": share * (true * (true / q).log()).sum() + (1 - share) * (1 - accepted),
    }


def by_definition(name: str, x: torch.Tensor, z: torch.Tensor, teacher: Teacher) -> torch.Tensor:
    return torch.stack([defined(row, target, teacher, None)[name] for row, target in zip(x, z, strict=True)])


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_definition(name: str, teacher: Teacher) -> None:
    z = logits(1, V)
    x = logits(2, len(kept(teacher))).requires_grad_()
    value, gradient = LOSSES[name](Comparison(x.detach(), target_of(z, teacher)))
    expected = by_definition(name, x, z, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)


class Evaluated(torch.autograd.Function):
    """A loss with the gradient that it comes with, for `gradcheck`."""

    @staticmethod
    def forward(ctx, x, loss, target):
        value, gradient = loss(Comparison(x.detach(), target))
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None], None, None


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"lk"}))  # its share of KL is held constant on purpose
def test_gradients_stand_the_test_of_finite_differences(name: str, teacher: Teacher) -> None:
    x = logits(3, len(kept(teacher)))[:4].requires_grad_()
    target = target_of(logits(4, V)[:4], teacher)
    assert torch.autograd.gradcheck(lambda x: Evaluated.apply(x, LOSSES[name], target), (x,), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_cross_entropy_with_the_text_falls_back_on_the_verifier_for_tokens_the_draft_lacks(teacher: Teacher) -> None:
    size = len(kept(teacher))
    following = torch.arange(ROWS) * 5 % size
    following[::3] = -1
    z, x = logits(5, V), logits(6, size)
    value, gradient = LOSSES["ce"](Comparison(x, target_of(z, teacher, following)))
    own = z[:, kept(teacher)].argmax(-1).tolist()
    for row in range(ROWS):
        wanted = own[row] if row % 3 == 0 else int(following[row])
        q = x[row].softmax(0)
        assert float(value[row]) == pytest.approx(-float(q[wanted].log()), rel=1e-12)
        torch.testing.assert_close(gradient[row], q - torch.nn.functional.one_hot(torch.tensor(wanted), size))


def test_the_texts_tokens_go_with_their_rows() -> None:
    target = Target(logits(7, V), None, following=torch.arange(ROWS))
    assert target.rows(torch.tensor([4, 2])).hard.tolist() == [4, 2]


def test_no_other_loss_looks_at_the_text() -> None:
    z, x = logits(8, V), logits(9, V)
    following = torch.arange(ROWS)
    for name, loss in LOSSES.items():
        with_text, without = (loss(Comparison(x, target_of(z, "whole", text)))[0] for text in (following, None))
        assert torch.equal(with_text, without) == (name != "ce"), name


RULES: Mapping[str, Callable[[dict[str, torch.Tensor]], torch.Tensor]] = {
    "soft_ce is kl and the verifier's entropy": lambda v: v["soft_ce"] - v["kl"] - v["entropy"],
    "lk lies between kl and tv": lambda v: (v["lk"] - torch.maximum(v["kl"], v["tv"])).clamp(min=0),
    "jsd is at most log 2": lambda v: (v["jsd"] - torch.log(torch.tensor(2.0))).clamp(min=0),
    "tv is at most the root of half of kl": lambda v: (v["tv"] - (v["kl"] / 2).sqrt()).clamp(min=0),
    "nla is at least tv": lambda v: (v["tv"] - v["nla"]).clamp(min=0),
    "top_k is at most soft_ce": lambda v: (v["top_k"] - v["soft_ce"]).clamp(min=0),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_losses_keep_the_inequalities_of_the_books(rule: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> None:
    z, x = logits(10, V), logits(11, V)
    p = z.softmax(-1)
    values = {name: loss(Comparison(x, target_of(z, "whole")))[0] for name, loss in LOSSES.items()}
    values["entropy"] = -(p * p.log()).sum(-1)
    assert float(rule(values).abs().max()) < 1e-12


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"ce", "soft_ce", "top_k"}))
def test_a_draft_that_is_the_verifier_has_no_distance_and_nothing_to_learn(name: str) -> None:
    z = logits(12, V)
    value, gradient = LOSSES[name](Comparison(z + 3.0, target_of(z, "whole")))
    assert float(value.abs().max()) < 1e-12
    if name not in ("tv", "nla", "lk"):  # those have a corner there
        assert float(gradient.abs().max()) < 1e-12


def test_a_mix_weighs_its_terms_and_tells_them_unweighted() -> None:
    pair = Comparison(logits(13, KEPT), target_of(logits(14, V), "unrenormalized"))
    weights = {"kl": 0.5, "tv": 2.0, "top_k": 1.0, "ce": 0.0}
    value, gradient, terms = mix(pair, weights)
    assert terms.keys() == {"kl", "tv", "top_k"}
    parts = {name: LOSSES[name](pair) for name in terms}
    for name, (own, _) in parts.items():
        assert torch.equal(terms[name], own)
    torch.testing.assert_close(value, sum(weights[name] * own for name, (own, _) in parts.items()))
    torch.testing.assert_close(gradient, sum(weights[name] * slope for name, (_, slope) in parts.items()))


@pytest.mark.parametrize("name", LOSSES)
def test_distributions_without_anything_in_common_give_finite_numbers_in_float32(name: str) -> None:
    z, x = (logits(seed, V, spread=200.0).float() for seed in (15, 16))
    pair = Comparison(x, target_of(z, "whole"))
    assert bool((pair.acceptance == 0).any())
    value, gradient = LOSSES[name](pair)
    assert bool(value.isfinite().all())
    assert bool(gradient.isfinite().all())
