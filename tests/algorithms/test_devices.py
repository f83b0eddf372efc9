"""A batch on an accelerator is never mixed with what stayed on the processor: found here without an accelerator.

Tensors of the batch and of the networks are marked; what is made of a marked tensor, or on a device that is named, is
marked too. An operation that takes a marked and an unmarked tensor would fail on a GPU, and fails here. Indexing by an
unmarked tensor is allowed there, and single numbers are.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from speculators.algorithms.base import Batch
from speculators.layers.rotary import Rotary

ALGORITHMS = {
    "eagle": "type: eagle",
    "hass": "type: hass, judged_steps: 2",
    "eagle3": "type: eagle3, training_time_test: {steps: 3}, out_of_vocabulary: drop, reduction: sequence_mean",
    "peagle": "type: peagle, layers: 2, depths: 3, feature_noise: 0.1",
    "eagle3 by the text": "type: eagle3, loss: {ce: 1.0, top_k: 0.1, ce_target: data}",
    "dflash": "type: dflash, layers: 2, block_size: 4, anchors: 2",
    "dflash by chances": "type: dflash, layers: 1, block_size: 4, anchors: 2, weights: {type: dpace}",
    "dspark": "type: dspark, layers: 1, block_size: 4, markov_rank: 4, teacher: unrenormalized",
    "dspark with a memory": "type: dspark, layers: 1, block_size: 4, markov_rank: 4, markov_head_type: rnn, "
    "teacher: unrenormalized",
    "dflash2": "type: dflash2, layers: 1, block_size: 4, selector: {rank: 4, top_k: 3}, convolution: {group_size: 8}",
    "xpress": "type: xpress, layers: 1, block_size: 4, refiner: {rank: 4}, teacher: unrenormalized",
    "medusa": "type: medusa, heads: 3, out_of_vocabulary: drop, reduction: sequence_mean",
    "hydra": "type: hydra, heads: 3, layers: 2, shared_head: true",
    "mlp_speculator": "type: mlp_speculator, heads: 3, inner_size: 16",
    "mtp": "type: mtp, steps: 3",
    "draft_model": "type: draft_model, random: {hidden_size: 16}, steps: 3, reduction: sequence_mean",
}


class Marked(TorchFunctionMode):
    """Follows marks through every function of torch that is called."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        result = function(*args, **kwargs)
        given = list(tensors([args, kwargs]))
        if name == "cpu":
            return result.clone()
        if name in ("tolist", "item"):
            return result
        moved = name == "to" and any(isinstance(one, torch.device | str) for one in args)
        if moved and result is args[0]:
            result = result.clone()  # a device's copy is another tensor
        if name == "to" and len(given) == 2:  # another tensor's type and device
            return mark(result) if is_marked(given[1]) else result
        if name in ("__getitem__", "__setitem__"):
            base = args[0]
            others = given[1:] if is_marked(base) else [one for one in given if is_marked(one)]
            inside = list(tensors([args[1]]))
            wrong = [one for one in others if one.dim() and not any(one is other for other in inside)]
            if not is_marked(base):
                wrong = [one for one in others if one.dim()]
            else:
                wrong = [one for one in wrong if not is_marked(one)]
            assert not wrong, f"{name} mixes devices"
            marked = is_marked(base)
        else:
            sized = [one for one in given if one.dim()]
            marks = {is_marked(one) for one in sized}
            assert len(marks) < 2 or moved or name in ("copy_", "__get__"), f"{name} mixes devices"
            marked = True in marks or moved or kwargs.get("device") is not None
        if marked:
            for one in tensors([result]):
                one.is_on_device = True
        return result


def tensors(values: Any) -> Any:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from tensors(value)


def is_marked(one: torch.Tensor) -> bool:
    return getattr(one, "is_on_device", False)


def mark(one: torch.Tensor) -> torch.Tensor:
    one.is_on_device = True
    return one


def mark_inside(thing: Any, seen: set[int]) -> None:
    """Mark all tensors that an object of ours holds: they were made for the device."""
    if id(thing) in seen or isinstance(thing, Rotary):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        mark(thing)
    elif isinstance(thing, dict):
        for value in thing.values():
            mark_inside(value, seen)
    elif isinstance(thing, torch.nn.Module) or type(thing).__module__.startswith("speculators"):
        mark_inside(getattr(thing, "__dict__", {}), seen)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_nothing_on_the_processor_is_mixed_with_what_is_on_the_device(name, make_batch, objective_of, monkeypatch):
    objective = objective_of(ALGORITHMS[name])
    mark_inside(objective, set())
    forward = Rotary.forward
    monkeypatch.setattr(Rotary, "forward", lambda self, positions, last=None: tables(forward, self, positions, last))
    batch = make_batch(["0001111111", "00111111", "011111"])
    floats = {"aux": batch.aux.float(), "last": batch.last.float()}
    batch = replace(batch, **floats)
    batch = Batch(**{
        one.name: mark(value) if isinstance(value := getattr(batch, one.name), torch.Tensor) else value
        for one in fields(batch)
    })  # fmt: skip
    with Marked(), torch.no_grad():
        for noise in (None, lambda number: torch.Generator().manual_seed(number)):
            evaluation = objective.evaluate(batch, noise)
            assert not is_marked(evaluation.accepted.lengths), "the walk is made on the processor"
    assert evaluation.measured["loss"][1] == 1


def tables(forward: Any, rotary: Rotary, positions: torch.Tensor, last: int | None) -> Any:
    """As on a device: tables are where the positions are."""
    with torch._C.DisableTorchFunction():
        found = forward(rotary, positions, last)
    return tuple(mark(one) for one in found) if is_marked(positions) else found
