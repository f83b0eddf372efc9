"""Recomputed, in smaller chunks or compiled: the same draft is learnt, and lengths are no reason to compile again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func
from safetensors.torch import load_file
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from speculators.algorithms.base import Objective
from speculators.recipe.shapes.train import Execution
from speculators.training import compiled_attention, execution
from speculators.training.execution import apply_execution, attend_flexibly
from speculators.training.loop import Silent, TrainingInputs, train

Build = Callable[..., TrainingInputs]
PLAIN = Execution(recompute=False, loss_positions=None, compile=False)


class Told(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def trained(inputs: TrainingInputs, execution: Execution, report: Told, backend: str = "inductor") -> Path:
    apply_execution(inputs.objective, execution, report, backend)
    train(replace(inputs, report=report))
    return inputs.output / "model.safetensors"


def same(file: Path, other: Path, tolerance: float) -> None:
    expected = load_file(other)
    for name, one in load_file(file).items():
        torch.testing.assert_close(one, expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputing_learns_the_same_to_the_bit(training: Build, precision: str) -> None:
    plain = trained(training("plain", precision=precision), PLAIN, Told())
    again = trained(training("again", precision=precision), replaced(recompute=True), Told())
    same(again, plain, 0)


def test_recomputing_keeps_less_for_the_backward_pass(training: Build) -> None:
    def kept(execution: Execution) -> int:
        inputs, sizes = training(), {}
        apply_execution(inputs.objective, execution, Told())
        batch = inputs.data.batch(inputs.data.tokens.train_documents)

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            evaluation = inputs.objective.evaluate(batch)
        assert evaluation.measured
        return sum(sizes.values())

    assert kept(replaced(recompute=True)) < 0.9 * kept(PLAIN)


def test_chunks_of_the_loss_change_rounding_alone(training: Build) -> None:
    plain = trained(training("plain", precision="float64"), PLAIN, Told())
    same(trained(training("small", precision="float64"), replaced(loss_positions=7), Told()), plain, 1e-9)


def test_lengths_are_no_reason_to_compile_again(training: Build) -> None:
    """Every document alone, so that every batch has sizes of its own; training and validation are two graphs each."""
    torch._dynamo.reset()
    counters.clear()
    options = {"tokens_per_step": 1, "epochs": 1, "optimizer": "adamw"}
    told = Told()
    compiled = trained(training("compiled", **options), replaced(compile=True), told, backend="eager")
    assert told.messages == []
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 8, graphs
    same(compiled, trained(training("plain", **options), PLAIN, Told()), 1e-6)


def test_what_cannot_be_compiled_is_told_once_and_computed_plainly(training: Build) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        raise OSError("no compiler here\nand more")

    torch._dynamo.reset()
    told = Told()
    compiled = trained(training("compiled"), replaced(compile=True), told, backend=broken)  # type: ignore[arg-type]
    assert len(told.messages) == 1
    assert told.messages[0].startswith("torch.compile failed, so training goes on without it: ")
    assert "no compiler here" in told.messages[0]
    same(compiled, trained(training("plain"), PLAIN, Told()), 0)


def replaced(**changes: bool | int) -> Execution:
    import msgspec

    return msgspec.structs.replace(PLAIN, **changes)


def test_every_objective_can_be_left_as_it_is(training: Build) -> None:
    objective: Objective = training().objective
    before = dict(vars(objective.network.layers[0]))  # type: ignore[index]
    apply_execution(objective, PLAIN, Told())
    assert dict(vars(objective.network.layers[0])) == before  # type: ignore[index]


@pytest.mark.usefixtures("flexible_gradients")
def test_flexible_attention_learns_the_same(training: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's way, without one: all batches are small here, so the least size is made smaller."""
    monkeypatch.setattr(compiled_attention, "TILE", 1)
    told, inputs = Told(), training("flexible", optimizer="adamw")
    attend_flexibly(inputs.objective.network, told, backend="aot_eager")
    counters.clear()
    train(replace(inputs, report=told))
    assert told.messages == []
    assert 0 < counters["stats"]["unique_graphs"] <= 8
    plain = trained(training("plain", optimizer="adamw"), PLAIN, Told())
    same(inputs.output / "model.safetensors", plain, 1e-5)


@pytest.mark.parametrize("fails", ["forward", "backward"])
@pytest.mark.usefixtures("flexible_gradients")
def test_flexible_attention_that_cannot_be_compiled_is_told_once(
    fails: str, training: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        return make_boxed_func(graph.forward)

    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        raise OSError("no Triton here\nand more")

    monkeypatch.setattr(compiled_attention, "TILE", 1)
    backend = aot_autograd(fw_compiler=broken if fails == "forward" else works, bw_compiler=broken)
    told, inputs = Told(), training("flexible")
    attend_flexibly(inputs.objective.network, told, backend)
    train(replace(inputs, report=told))
    assert len(told.messages) == 1
    assert told.messages[0].startswith("FlexAttention could not be compiled, so attention is computed plainly: ")
    assert "no Triton here" in told.messages[0]
    same(inputs.output / "model.safetensors", trained(training("plain"), PLAIN, Told()), 0)


def test_compiling_reaches_attention_on_a_gpu_alone(training: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    flexible = []
    monkeypatch.setattr(execution, "attend_flexibly", lambda network, report, backend: flexible.append(network))
    on_cpu, on_gpu = training().objective, training().objective
    apply_execution(on_cpu, replaced(compile=True), Told())
    assert flexible == []
    monkeypatch.setattr(
        type(on_gpu.network), "parameters", lambda self: iter([SimpleNamespace(device=SimpleNamespace(type="cuda"))])
    )
    apply_execution(on_gpu, replaced(compile=True), Told())
    assert flexible == [on_gpu.network]
