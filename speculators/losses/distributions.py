"""Distances between the draft's distribution q and the verifier's p, each with its gradient with respect to q's logits.

Every loss is a function of a `Comparison` and returns (value [n], gradient [n, Vd]). Writing the gradients down avoids
keeping [n, Vd] intermediates for autograd; a test checks them against it. With p of mass m <= 1 over the draft's
vocabulary (a teacher that is not renormalised) q still sums to one.

    kl   sum p log(p/q)                      rkl  sum q log(q/p)
    jsd  (sum p log(p/c) + sum q log(q/c))/2, c = (p+q)/2
    ce   -log q(x), x argmax p or the text's tv   1 - sum min(p, q)
    nla  -log sum min(p, q)                  lk   w KL + (1-w)(1 - a), a = sum min(p, q), w = exp(-3 a) held constant
    soft_ce  -sum p log q                    top_k  -sum of p log q over the ten likeliest of p (HASS)

`tv`, `nla` and `lk` speak of acceptance, a = sum min(p, q), so they always see the verifier's true probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

LK_RATE = 3.0
"""The rate at which `lk` turns from KL to acceptance as acceptance grows."""

TOP_K = 10
"""Tokens that `top_k` looks at, as in the paper of HASS."""

Evaluated = tuple[torch.Tensor, torch.Tensor]
"""Value [n] and gradient with respect to the draft's logits [n, Vd]."""


_T = TypeVar("_T")


class _Once(Generic[_T]):
    """A property that is computed when it is first asked for; `cached_property` has a lock that nothing compiles."""

    def __init__(self, compute: Callable[[Any], _T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, one: Any, owner: type | None = None) -> _T:
        found = self._compute(one)
        object.__setattr__(one, self._name, found)  # where it is found before this
        return found


class _Softmax:
    """A softmax over logits [n, v] of which only what is asked for is computed.

    Everything comes from one softmax: torch's exponential is several times slower than the one inside it, and the
    log-sum-exp is the largest logit minus the logarithm of its probability, which is never below 1/v.
    """

    logits: torch.Tensor

    @_Once
    def peak(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest logit [n] and its id int64 [n]."""
        values, ids = self.logits.max(-1)
        return values, ids

    @_Once
    def probabilities(self) -> torch.Tensor:
        return self.logits.softmax(-1)

    @_Once
    def lse(self) -> torch.Tensor:
        """Log-sum-exp of the logits [n]."""
        values, ids = self.peak
        return values - self.probabilities.gather(-1, ids[:, None])[:, 0].log()

    @_Once
    def log(self) -> torch.Tensor:
        """Log-probabilities [n, v]."""
        return self.logits - self.lse[:, None]


@dataclass(frozen=True)
class Target(_Softmax):
    """The verifier's distributions over the draft's vocabulary at n positions.

    `logits` [n, Vd]; `log_total` [n] is the log-sum-exp of the verifier's whole vocabulary, None when that is the
    draft's. `is_renormalized` says whether the likelihood losses see p renormalised over the draft's vocabulary.
    `following` int64 [n] are the text's next tokens as draft ids, -1 where the draft does not have them; None where
    `ce` is to compare with the verifier's choice.
    """

    logits: torch.Tensor
    log_total: torch.Tensor | None = None
    is_renormalized: bool = True
    following: torch.Tensor | None = None

    @_Once
    def hard(self) -> torch.Tensor:
        """The one token that `ce` wants, draft ids int64 [n]: of those that the draft has, where the text's is none."""
        best = self.peak[1]
        return best if self.following is None else torch.where(self.following < 0, best, self.following)

    @_Once
    def mass(self) -> torch.Tensor | None:
        """What the draft's vocabulary has of the verifier's probability [n]; None for all of it."""
        return None if self.log_total is None else (self.lse - self.log_total).exp()

    @_Once
    def seen_mass(self) -> torch.Tensor | None:
        """Sum of p as the likelihood losses see it [n]; None for 1."""
        return None if self.is_renormalized else self.mass

    @_Once
    def seen(self) -> torch.Tensor:
        """p as the likelihood losses see it, [n, Vd]."""
        return self.probabilities if self.is_renormalized else self.true

    @_Once
    def log_seen(self) -> torch.Tensor:
        return self.log if self.is_renormalized else self.log_true

    @_Once
    def negative_entropy(self) -> torch.Tensor:
        """sum p log p of `seen` [n]."""
        if self.seen_mass is None:
            return _dot(self.probabilities, self.logits) - self.lse
        return _dot(self.seen, self.log_seen)

    @_Once
    def true(self) -> torch.Tensor:
        """p with the mass that the draft's vocabulary really has, [n, Vd]."""
        return self.probabilities if self.mass is None else self.probabilities * self.mass[:, None]

    @_Once
    def log_true(self) -> torch.Tensor:
        return self.log if self.log_total is None else self.logits - self.log_total[:, None]

    def rows(self, index: torch.Tensor) -> Target:
        """The distributions at some of the positions, int64 [m]."""
        total = None if self.log_total is None else self.log_total[index]
        following = None if self.following is None else self.following[index]
        return Target(self.logits[index], total, self.is_renormalized, following)


@dataclass(frozen=True)
class Comparison(_Softmax):
    """The draft's distributions q, by their `logits` [n, Vd], beside the verifier's."""

    logits: torch.Tensor
    target: Target

    @property
    def q(self) -> torch.Tensor:
        return self.probabilities

    @_Once
    def acceptance(self) -> torch.Tensor:
        """sum min(p, q) [n]: the probability that a token drawn from q is accepted."""
        return torch.minimum(self.q, self.target.true).sum(-1)

    def through_softmax(self, slope: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to logits from the one with respect to q."""
        return self.q * (slope - _dot(self.q, slope)[:, None])


def kl(pair: Comparison) -> Evaluated:
    """KL(p || q)."""
    target = pair.target
    if target.seen_mass is None:
        value = target.negative_entropy - _dot(target.seen, pair.logits) + pair.lse
        return value, pair.q - target.seen
    value = target.negative_entropy - _dot(target.seen, pair.logits) + target.seen_mass * pair.lse
    return value, pair.q * target.seen_mass[:, None] - target.seen


def rkl(pair: Comparison) -> Evaluated:
    """KL(q || p)."""
    ratio = pair.log - pair.target.log_seen
    value = _dot(pair.q, ratio)
    return value, pair.q * (ratio - value[:, None])


def jsd(pair: Comparison) -> Evaluated:
    """Jensen-Shannon divergence, in nats."""
    target = pair.target
    log_middle = torch.logaddexp(pair.log, target.log_seen) - math.log(2.0)
    from_q = pair.log - log_middle
    value = _dot(pair.q, from_q) + _dot(target.seen, target.log_seen - log_middle)
    return value / 2, pair.through_softmax(from_q / 2)


def ce(pair: Comparison) -> Evaluated:
    """Cross-entropy against one token: the verifier's most likely of the draft's vocabulary, or the text's."""
    best = pair.target.hard[:, None]
    gradient = pair.q.scatter_add(-1, best, -torch.ones_like(best, dtype=pair.q.dtype))
    return pair.lse - pair.logits.gather(-1, best)[:, 0], gradient


def soft_ce(pair: Comparison) -> Evaluated:
    """Cross-entropy against the whole of p: KL(p || q) without the entropy of p."""
    target = pair.target
    mass = pair.lse if target.seen_mass is None else target.seen_mass * pair.lse
    gradient = pair.q if target.seen_mass is None else pair.q * target.seen_mass[:, None]
    return mass - _dot(target.seen, pair.logits), gradient - target.seen


def top_k(pair: Comparison) -> Evaluated:
    """Cross-entropy against p at its likeliest tokens alone, which is not scaled to sum to one there."""
    p, ids = pair.target.seen.topk(min(TOP_K, pair.logits.shape[-1]), dim=-1)
    mass = p.sum(-1)
    value = mass * pair.lse - _dot(p, pair.logits.gather(-1, ids))
    return value, (pair.q * mass[:, None]).scatter_add(-1, ids, -p)


def tv(pair: Comparison) -> Evaluated:
    """Total variation: one minus acceptance."""
    return 1 - pair.acceptance, pair.through_softmax(_acceptance_slope(pair).neg())


def nla(pair: Comparison) -> Evaluated:
    """Negative logarithm of acceptance, which is taken for the smallest number where it is too small to be one."""
    acceptance = pair.acceptance.clamp(min=torch.finfo(pair.q.dtype).tiny)
    slope = _acceptance_slope(pair).neg() / acceptance[:, None]
    return -acceptance.log(), pair.through_softmax(slope)


def lk(pair: Comparison) -> Evaluated:
    """KL where the draft is still far from the verifier, acceptance where it is near."""
    target = pair.target
    weight = torch.exp(-LK_RATE * pair.acceptance)
    divergence = _dot(target.true, target.log_true - pair.log)
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
    "soft_ce": soft_ce,
    "top_k": top_k,
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


@dataclass(frozen=True)
class Compared:
    """What came of comparing n rows of the draft's logits with the verifier's distributions.

    `values` [n] of the mix and `terms` [n] of each loss; `gradient` [n, Vd] of the values with respect to the logits,
    in their type; `best` int64 [n], the draft's most likely ids.
    """

    values: torch.Tensor
    gradient: torch.Tensor
    terms: dict[str, torch.Tensor]
    best: torch.Tensor


Compare = Callable[[torch.Tensor, Target, Mapping[str, float], torch.dtype], Compared]


def compare(logits: torch.Tensor, target: Target, losses: Mapping[str, float], dtype: torch.dtype) -> Compared:
    """Compare `logits` [n, Vd], in the type of products, with `target` by a mix of `losses`, computed in `dtype`."""
    pair = Comparison(logits.to(dtype), target)
    values, gradient, terms = mix(pair, losses)
    return Compared(values, gradient.to(logits.dtype), terms, pair.peak[1])


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Row by row, [n]."""
    result: torch.Tensor = torch.linalg.vecdot(left, right)
    return result


def _acceptance_slope(pair: Comparison) -> torch.Tensor:
    """Derivative of sum min(p, q) with respect to q: 1 where q is the smaller."""
    return (pair.q < pair.target.true).to(pair.q.dtype)
