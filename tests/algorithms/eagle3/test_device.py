"""Training on a GPU, tried without one: whatever is there and whatever is not never meet in one operation.

The mode below marks the storages that would be on a GPU, and hands the mark on from operands to results. An operation
of a marked and an unmarked tensor raises, except where torch allows it: numbers of no dimension, indices, and copies.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves

from speculators.algorithms.base import Batch
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.objective import Eagle3Objective
from speculators.layers.products import mix_precision
from speculators.layers.vocabulary import VerifierHead
from speculators.recipe.load import load_recipe

GPU, CPU, ANY = "gpu", "cpu", "any"
MOVES = {"_to_copy", "copy_", "clone", "detach"}
INDEXED = {"index", "index_put", "index_put_"}


class TwoDevices(TorchDispatchMode):
    """Keeps the place of every storage; `put` moves a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[int, str] = {}
        self.operations = 0

    def put(self, tensor: torch.Tensor, place: str) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._places:
            weakref.finalize(storage, self._places.pop, key, None)
        self._places[key] = place
        return tensor

    def place(self, tensor: torch.Tensor) -> str:
        return self._places.get(tensor.untyped_storage()._cdata, CPU)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        operands = args[:1] if name in INDEXED else args
        tensors = [one for one in tree_leaves((operands, kwargs)) if isinstance(one, torch.Tensor)]
        marks = {self.place(one) for one in tensors if one.dim()}
        places = marks - {ANY}
        assert len(places) < 2 or name in MOVES, f"{func}: {[(self.place(one), one.shape) for one in tensors]}"
        self.operations += GPU in places
        out = func(*args, **(kwargs or {}))
        where = next(iter(places), CPU) if len(places) < 2 else self.place(args[0])
        if marks == {ANY}:
            where = ANY
        if name != "_local_scalar_dense":
            for one in tree_iter(out):
                if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in self._places:
                    self.put(one, where)
        return out


class Asked(TorchFunctionMode):
    """Marks what is made on a device that was asked for, some tensor's own: it gets along with anything."""

    def __init__(self, devices: TwoDevices) -> None:
        super().__init__()
        self._devices = devices

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = isinstance(out, torch.Tensor) and not any(isinstance(one, torch.Tensor) for one in tree_leaves(args))
        if made and (kwargs or {}).get("device") is not None:
            self._devices.put(out, ANY)
        return out


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> TwoDevices:
    """The mode, with `to` and `cpu` moving between the two: the only device that the objective names is the draft's."""
    mode, to = TwoDevices(), torch.Tensor.to

    def moved(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        target = arguments[0] if arguments else None
        result: torch.Tensor = to(tensor, *arguments, **options)
        if isinstance(target, torch.Tensor):
            return mode.put(result.clone(), mode.place(target))
        return mode.put(result.clone(), GPU) if isinstance(target, torch.device) else result

    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: mode.put(tensor.clone(), CPU))
    return mode


OPTIONS: dict[str, dict[str, Any]] = {
    "as the recipes have it": {},
    "noise": {"feature_noise": 0.1},
    "sequence_mean, dropping": {"reduction": "sequence_mean", "out_of_vocabulary": "drop"},
    "padded_mean, the whole mass": {"reduction": "padded_mean", "teacher": "unrenormalized"},
    "two layers": {"layers": 2},
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_tensors_of_two_devices_never_meet(
    tiny_network: Callable[..., Eagle3Network],
    devices: TwoDevices,
    changes: dict[str, Any],
    precision: torch.dtype,
) -> None:
    recipe = load_recipe("tiny", sets=["algorithm.draft_vocab_size=32"]).recipe.algorithm
    algorithm = msgspec.structs.replace(recipe, **changes)
    network = tiny_network(layers=algorithm.layers)
    if precision != torch.float32:
        mix_precision(network, precision)
    generator = torch.Generator().manual_seed(0)
    head = VerifierHead(torch.randn(50, 24, generator=generator), torch.ones(24), 1e-6)
    batch = Batch(
        lengths=(7, 9),
        input_ids=torch.randint(0, 50, (16,), generator=generator),
        loss_mask=(torch.arange(16) % 8) > 2,
        aux=torch.randn(16, 72, generator=generator),
        last=torch.randn(16, 24, generator=generator),
        argmax=torch.randint(0, 50, (16,), generator=generator),
    )
    there = [*network.parameters(), *network.buffers(), head.weight, head.norm]
    there += [batch.input_ids, batch.aux, batch.last, batch.argmax]
    with devices, Asked(devices):
        for tensor in there:
            devices.put(tensor, GPU)
        objective = Eagle3Objective(network, algorithm, head, compute_dtype=precision)
        evaluation = objective.evaluate(batch, lambda number: torch.Generator().manual_seed(number))
        evaluation.loss.backward()  # type: ignore[no-untyped-call]
        assert devices.place(evaluation.accepted.newest) == devices.place(evaluation.accepted.lengths) == CPU
    assert devices.operations > 200
    assert evaluation.measured


def test_the_check_itself_finds_a_mistake(devices: TwoDevices) -> None:
    with devices:
        there, here = devices.put(torch.ones(3), GPU), torch.arange(3)
        assert devices.place(there[here] * 2) == GPU  # indices may be here
        with pytest.raises(AssertionError, match="index_select"):
            there.index_select(0, here)
        with pytest.raises(AssertionError, match="add"):
            there + here
