"""Distances between the draft's distribution q and the verifier's p, each with its gradient with respect to q's logits.

Every loss is a function of a `Comparison` and returns (value [n], gradient [n, Vd]). Writing the gradients down avoids
keeping [n, Vd] intermediates for autograd; a test checks them against it. With p of mass m <= 1 over the draft's
vocabulary (a teacher that is not renormalised) q still sums to one.

    kl   sum p log(p/q)                      rkl  sum q log(q/p)
    jsd  (sum p log(p/c) + sum q log(q/c))/2, c = (p+q)/2
    ce   -log q(argmax p)                    tv   1 - sum min(p, q)
    nla  -log sum min(p, q)                  lk   w KL + (1-w)(1 - a), a = sum min(p, q), w = exp(-3 a) held constant

`tv`, `nla` and `lk` speak of acceptance, a = sum min(p, q), so they always see the verifier's true probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

LK_RATE = 3.0
"""The rate at which `lk` turns from KL to acceptance as acceptance grows."""

Evaluated = tuple[torch.Tensor, torch.Tensor]
"""Value [n] and gradient with respect to the draft's logits [n, Vd]."""


@dataclass(frozen=True)
class Target:
    """The verifier's distributions over the draft's vocabulary at n positions.

    `log_p` [n, Vd] sums to one; `log_mass` [n] is the logarithm of what that vocabulary has of the verifier's whole
    probability, None for all of it. `is_renormalized` says which of the two p the likelihood losses see.
    """

    log_p: torch.Tensor
    log_mass: torch.Tensor | None = None
    is_renormalized: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether p, as the likelihood losses see it, sums to one."""
        return self.is_renormalized or self.log_mass is None

    @cached_property
    def log_seen(self) -> torch.Tensor:
        """log p as the likelihood losses see it, [n, Vd]."""
        return self.log_p if self.is_renormalized else self.log_true

    @cached_property
    def seen(self) -> torch.Tensor:
        return self.log_seen.exp()

    @cached_property
    def negative_entropy(self) -> torch.Tensor:
        """sum p log p of `seen` [n]."""
        return _dot(self.seen, self.log_seen)

    @cached_property
    def log_true(self) -> torch.Tensor:
        """log p with the mass that the draft's vocabulary really has, [n, Vd]."""
        return self.log_p if self.log_mass is None else self.log_p + self.log_mass[:, None]

    @cached_property
    def true(self) -> torch.Tensor:
        return self.seen if self.log_true is self.log_seen else self.log_true.exp()

    @cached_property
    def best(self) -> torch.Tensor:
        """The most likely draft id, int64 [n, 1]."""
        return self.log_p.argmax(-1, keepdim=True)

    def rows(self, index: torch.Tensor) -> Target:
        """The distributions at some of the positions, int64 [m]."""
        mass = None if self.log_mass is None else self.log_mass[index]
        return Target(self.log_p[index], mass, self.is_renormalized)


@dataclass(frozen=True)
class Comparison:
    """The draft's distributions `log_q` [n, Vd] beside the verifier's."""

    log_q: torch.Tensor
    target: Target

    @cached_property
    def q(self) -> torch.Tensor:
        return self.log_q.exp()

    @cached_property
    def acceptance(self) -> torch.Tensor:
        """sum min(p, q) [n]: the probability that a token drawn from q is accepted."""
        return torch.minimum(self.q, self.target.true).sum(-1)

    def through_softmax(self, slope: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to logits from the one with respect to q."""
        return self.q * (slope - _dot(self.q, slope)[:, None])


def kl(pair: Comparison) -> Evaluated:
    """KL(p || q)."""
    target = pair.target
    value = target.negative_entropy - _dot(target.seen, pair.log_q)
    if target.is_whole:
        return value, pair.q - target.seen
    return value, pair.q * target.seen.sum(-1, keepdim=True) - target.seen


def rkl(pair: Comparison) -> Evaluated:
    """KL(q || p)."""
    ratio = pair.log_q - pair.target.log_seen
    value = _dot(pair.q, ratio)
    return value, pair.q * (ratio - value[:, None])


def jsd(pair: Comparison) -> Evaluated:
    """Jensen-Shannon divergence, in nats."""
    target = pair.target
    log_middle = torch.logaddexp(pair.log_q, target.log_seen) - math.log(2.0)
    from_q = pair.log_q - log_middle
    value = _dot(pair.q, from_q) + _dot(target.seen, target.log_seen - log_middle)
    return value / 2, pair.through_softmax(from_q / 2)


def ce(pair: Comparison) -> Evaluated:
    """Cross-entropy against the verifier's most likely token of the draft's vocabulary."""
    best = pair.target.best
    gradient = pair.q.scatter_add(-1, best, -torch.ones_like(best, dtype=pair.q.dtype))
    return -pair.log_q.gather(-1, best)[:, 0], gradient


def tv(pair: Comparison) -> Evaluated:
    """Total variation: one minus acceptance."""
    return 1 - pair.acceptance, pair.through_softmax(_acceptance_slope(pair).neg())


def nla(pair: Comparison) -> Evaluated:
    """Negative logarithm of acceptance."""
    slope = _acceptance_slope(pair).neg() / pair.acceptance[:, None]
    return -pair.acceptance.log(), pair.through_softmax(slope)


def lk(pair: Comparison) -> Evaluated:
    """KL where the draft is still far from the verifier, acceptance where it is near."""
    target = pair.target
    weight = torch.exp(-LK_RATE * pair.acceptance)
    divergence = _dot(target.true, target.log_true - pair.log_q)
    missed, missed_gradient = tv(pair)
    gradient = pair.q * target.true.sum(-1, keepdim=True) - target.true
    gradient = gradient * weight[:, None] + missed_gradient * (1 - weight)[:, None]
    return weight * divergence + (1 - weight) * missed, gradient


LOSSES: Mapping[str, Callable[[Comparison], Evaluated]] = {
    "kl": kl,
    "rkl": rkl,
    "jsd": jsd,
    "ce": ce,
    "tv": tv,
    "nla": nla,
    "lk": lk,
}

NEED_TRUE_MASS = frozenset({"tv", "nla", "lk"})
"""Losses for which a reduced vocabulary needs the verifier's full one."""


def mix(pair: Comparison, weights: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum of several losses: value [n], gradient [n, Vd], and each loss's own values [n], unweighted."""
    total: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if weight == 0:
            continue
        terms[name], slope = LOSSES[name](pair)
        total = terms[name] * weight if total is None else total + terms[name] * weight
        slope = slope if weight == 1 else slope * weight
        gradient = slope if gradient is None else gradient.add_(slope)
    if total is None or gradient is None:
        raise ValueError("a loss mix needs at least one weight that is not zero")
    return total, gradient, terms


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Row by row, [n]."""
    result: torch.Tensor = torch.linalg.vecdot(left, right)
    return result


def _acceptance_slope(pair: Comparison) -> torch.Tensor:
    """Derivative of sum min(p, q) with respect to q: 1 where q is the smaller."""
    return (pair.q < pair.target.true).to(pair.q.dtype)
