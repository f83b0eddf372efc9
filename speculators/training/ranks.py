"""The processes that train one draft together, and the little they say to each other.

Every process has the whole draft and takes the same optimizer step by the summed gradients, so that parameters stay
equal to the bit; only the documents of a batch are divided (`training/shares.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from speculators.errors import StepError

_Value = TypeVar("_Value")


class RanksLost(StepError):
    """Another process of the training has ended, so this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count`, and what they do together.

    Every process has to call the same methods in the same order; each raises RanksLost when one of them is gone.
    """

    number: int = 0
    count: int = 1
    is_sharded: bool = False
    """Whether parameters, gradients and moments are divided among them (`training/sharding.py`)."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and tells how training gets on."""
        return self.number == 0

    def total(self, counts: torch.Tensor) -> torch.Tensor:
        """The sum of everyone's tensor."""
        if self.count == 1:
            return counts
        found = counts.clone()
        _together(lambda: dist.all_reduce(found))
        return found

    def any(self, flag: bool) -> bool:
        """Whether it is so anywhere. Who asks waits until all have asked."""
        return bool(self.total(torch.tensor(float(flag))))

    def gathered(self, value: _Value) -> list[_Value]:
        """Everyone's value, in the order of their numbers."""
        if self.count == 1:
            return [value]
        found: list[_Value] = [value] * self.count
        _together(lambda: dist.all_gather_object(found, value))
        return found

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make every gradient the sum of everyone's; a parameter that has none anywhere gets none.

        One buffer for all of them, in the parameters' own type, float32. (Divided ones were summed by backward.)
        """
        if self.count == 1 or self.is_sharded:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        flat = torch.cat([part.flatten() for part in parts])
        there = flat.new_tensor([float(one.grad is not None) for one in trained])
        flat = torch.cat([flat, there])
        _together(lambda: dist.all_reduce(flat))
        sums = torch.split(flat[: -len(trained)], [one.numel() for one in trained])
        there = flat[-len(trained) :]
        for parameter, found, is_there in zip(trained, sums, there.tolist(), strict=True):
            parameter.grad = found.view_as(parameter).to(parameter.dtype) if is_there else None


ALONE = Ranks()


@contextmanager
def joined(number: int, count: int, meeting: str, *, is_sharded: bool = False) -> Iterator[Ranks]:
    """Meet the other processes at `meeting`: `file://PATH` that nobody has used before, or `tcp://HOST:PORT`.

    Tensors on the CPU go by gloo, those on a GPU by NCCL. RanksLost when the others do not come.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _together(lambda: dist.init_process_group(backend, init_method=meeting, rank=number, world_size=count))
    yield Ranks(number, count, is_sharded)
    dist.destroy_process_group()  # not after a failure: it would wait for the others


def _together(do: Callable[[], object]) -> None:
    try:
        do()
    except RuntimeError as error:
        raise RanksLost(f"another process of this training has ended: {error}", step="train") from error
