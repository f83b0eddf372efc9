"""The training step of EAGLE-3 on this machine's GPU: is it right there, and how much of the card does it use?

    python benchmarks/gpu.py                                                      # an 8B verifier's layers
    python benchmarks/gpu.py --device cpu --shape 135m --tokens 512 --repeats 1   # the program itself, without a GPU

It needs a checkout, PyTorch, transformers, safetensors, msgspec and psutil, and no network: weights and hidden states
are random. First the checks, on the small shapes of `--checked`: loss and gradients against float64 on the CPU, in
float32 and in the precision of training; compiled against eager; scores computed twice against scores kept; on a GPU
FlexAttention against plain attention; and a training of some steps beside the same one in float32. A check that fails
ends the program with 1. Then, for `--shape`, every fraction of tokens in the loss, every number of steps and every way
of `--attention`: tokens a second, the rate of the step's products as a part of what a plain product of large matrices
reaches on this device, and the memory that the step adds. FlexAttention is compiled, and torch has its gradients on
GPUs alone: without one it is left out, which is said.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout is enough

from peers.our_steps import algorithm  # noqa: E402
from peers.workload import SHAPES, Workload, read, write  # noqa: E402

from speculators.algorithms.base import Batch  # noqa: E402
from speculators.algorithms.eagle3.objective import Eagle3Objective  # noqa: E402
from speculators.layers import attention  # noqa: E402
from speculators.layers.products import mix_precision, product_dtype  # noqa: E402
from speculators.layers.vocabulary import VerifierHead  # noqa: E402
from speculators.recipe.shapes.train import AdamW  # noqa: E402
from speculators.training.execution import attend_flexibly, compile_layers, compile_loss  # noqa: E402
from speculators.training.first_failure import FirstFailure  # noqa: E402
from speculators.training.loop import Silent  # noqa: E402
from speculators.training.optimizers import Optimizer  # noqa: E402

Attention = Literal["plain", "flexible"]
WAYS: tuple[Attention, ...] = ("plain", "flexible")

COURSE = 20
"""Steps of the training that is compared."""
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far, relatively, a loss or the gradients as a whole may be from the reference, by the type of the products."""


class Trainable:
    """A workload's draft on a device, in one precision, always from the same weights."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compiled: bool = False,
        attention: Attention = "plain",
    ) -> None:
        """`compiled` is about layers and loss; flexible attention always is."""
        workload, network, head, batch = read(folder)
        masters = torch.float64 if dtype == torch.float64 else torch.float32
        self.network = network.to(device, masters)
        if dtype not in (torch.float64, torch.float32):
            mix_precision(self.network, dtype)
        wide = dtype if dtype == torch.float64 else head.weight.dtype
        head = VerifierHead(head.weight.to(device, wide), head.norm.to(device, wide), head.eps)
        self.batch = Batch(
            lengths=batch.lengths,
            input_ids=batch.input_ids.to(device),
            loss_mask=batch.loss_mask,
            aux=batch.aux.to(device, dtype),
            last=batch.last.to(device, dtype),
            argmax=batch.argmax.to(device),
        )
        self.objective = Eagle3Objective(self.network, algorithm(workload), head, compute_dtype=dtype)
        self.told = Loud()
        if compiled:
            failed = FirstFailure(self.told, "torch.compile failed")
            compile_layers(self.network, failed)
            compile_loss(self.objective, failed)
        if attention == "flexible":
            attend_flexibly(self.network, self.told)
        self._optimizer = Optimizer(
            self.network, AdamW(learning_rate=1e-4, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)
        )

    def backward(self) -> float:
        """One forward and backward; the loss."""
        loss = self.objective.evaluate(self.batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def gradients(self) -> torch.Tensor:
        """All of them after one `backward`, float64 on the CPU, end to end."""
        found = [one.grad.flatten().double().cpu() for one in self.network.parameters() if one.grad is not None]
        return torch.cat(found)

    def step(self) -> float:
        """One step of the optimizer as well."""
        loss = self.backward()
        self._optimizer.step(1.0, 1.0)
        return loss


class Loud(Silent):
    """Prints what training tells, and remembers whether it told anything."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)
        print(f"  {text}", file=sys.stderr)


@dataclass(frozen=True)
class Check:
    """How far one way of computing is from another, relatively, and how far it may be."""

    name: str
    apart: float
    allowed: float

    @property
    def is_passed(self) -> bool:
        return self.apart <= self.allowed


def checks(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """Everything that has to agree, one after another."""
    true = Trainable(folder, torch.device("cpu"), torch.float64)
    true_loss, true_gradients = true.backward(), true.gradients()
    for precision in dict.fromkeys((torch.float32, dtype)):
        one, name = Trainable(folder, device, precision), str(precision).removeprefix("torch.")
        yield Check(f"{name}: loss, against float64", abs(one.backward() / true_loss - 1), ALLOWED[precision])
        yield Check(f"{name}: gradients, against float64", apart(one.gradients(), true_gradients), ALLOWED[precision])
    eager = Trainable(folder, device, torch.float32)
    eager.backward()
    compiled = Trainable(folder, device, torch.float32, compiled=True)
    compiled.backward()
    yield Check("gradients, compiled against eager", apart(compiled.gradients(), eager.gradients()), 1e-4)
    with scores_forgotten():
        twice = Trainable(folder, device, torch.float32)
        twice.backward()
    yield Check("gradients, scores computed twice", apart(twice.gradients(), eager.gradients()), 1e-5)
    if device.type == "cuda":
        for precision in dict.fromkeys((torch.float32, dtype)):
            yield flexible_check(folder, device, precision)
    if dtype != torch.float32:
        courses = [Trainable(folder, device, precision) for precision in (dtype, torch.float32)]
        losses = [[one.step() for _ in range(COURSE)] for one in courses]
        worst = max(abs(mine / theirs - 1) for mine, theirs in zip(*losses, strict=True))
        yield Check(f"{COURSE} losses of a training, against float32", worst, ALLOWED[dtype])


def flexible_check(folder: Path, device: torch.device, dtype: torch.dtype) -> Check:
    """FlexAttention's gradients, of more tokens than it needs; where it does not compile, they are infinitely far."""
    with tempfile.TemporaryDirectory() as large:
        write(replace(read(folder)[0], tokens=2048, document=512), Path(large))
        plain, flexible = (Trainable(Path(large), device, dtype, attention=way) for way in WAYS)
    for one in (plain, flexible):
        one.backward()
    name = f"{str(dtype).removeprefix('torch.')}: gradients, FlexAttention against plain"
    distance = math.inf if flexible.told.messages else apart(flexible.gradients(), plain.gradients())
    return Check(name, distance, ALLOWED[dtype])


def apart(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference as a part of the second's."""
    return float((mine - theirs).norm() / theirs.norm())


@contextmanager
def scores_forgotten() -> Iterator[None]:
    """Inside, no document's attention scores are kept for the backward pass."""
    before, attention.PLAIN_SCORES = attention.PLAIN_SCORES, 0
    try:
        yield
    finally:
        attention.PLAIN_SCORES = before


class Clock:
    """Seconds and memory of work on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_gpu = device, device.type == "cuda"

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self._is_gpu:
            torch.cuda.synchronize(self._device)

    def median(self, work: Callable[[], object], repeats: int) -> float:
        """Seconds of `work`, after it was done once."""
        work()
        times = []
        for _ in range(repeats):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def added_bytes(self, work: Callable[[], object]) -> int | None:
        """What `work` adds at most to what is allocated now; None on a CPU (`training.py` measures there)."""
        if not self._is_gpu:
            return None
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before


def product_rate(clock: Clock, device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a product of two square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / clock.median(lambda: left @ right, 10)


def speed(
    workload: Workload, device: torch.device, rate: float, *, compiled: bool, attention: Attention
) -> dict[str, Any]:
    """One workload's figures; operations are counted in the plain step, which every way has to stand for."""
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as name:
        write(workload, Path(name))
        trained = Trainable(Path(name), device, workload.dtype, compiled=compiled, attention=attention)
        seconds = clock.median(trained.step, workload.repeats)
        added = clock.added_bytes(trained.step)
        del trained
        plain = Trainable(Path(name), device, workload.dtype)
    with FlopCounterMode(display=False) as counted:
        plain.step()
    return {
        "loss_fraction": workload.fraction,
        "steps": workload.steps,
        "attention": attention,
        "tokens_per_second": workload.tokens / seconds,
        "product_rate_share": counted.get_total_flops() / seconds / rate,
        "added_gigabytes": None if added is None else added / 2**30,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures, in Markdown."""
    lines = [
        "| loss on | steps | attention | tokens/s | of the rate of products | memory added |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = "-" if row["added_gigabytes"] is None else f"{row['added_gigabytes']:.1f} GiB"
        cells = f"{row['loss_fraction']:.0%}", row["steps"], row["attention"], f"{row['tokens_per_second']:,.0f}"
        lines.append(f"| {' | '.join(map(str, cells))} | {row['product_rate_share']:.0%} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the program")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="8b", help="whose layers are measured")
    parser.add_argument("--checked", choices=tuple(SHAPES), default="135m", help="whose layers are checked")
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch")
    parser.add_argument("--document", type=int, default=1024, help="tokens of each document in it")
    parser.add_argument("--draft-vocabulary", type=int, default=32_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 7], help="of training-time test")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.3, 0.6, 1.0], help="of tokens in the loss")
    parser.add_argument("--compile", action="store_true", help="measure the step with compiled layers")
    parser.add_argument(
        "--attention",
        choices=WAYS,
        nargs="+",
        default=list(WAYS),
        help="which are measured",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu tries the program without one")
    dtype = product_dtype(torch.bfloat16, device)
    workload = Workload(
        shape=arguments.checked,
        draft_vocabulary=8192,
        tokens=256,
        document=128,
        steps=3,
        fraction=0.6,
        precision=str(dtype).removeprefix("torch."),
        train_head=True,
        repeats=arguments.repeats,
        threads=torch.get_num_threads(),
    )
    out = sys.stderr if arguments.json else sys.stdout
    with tempfile.TemporaryDirectory() as name:
        write(workload, Path(name))
        done = []
        for check in checks(Path(name), device, dtype):
            done.append(check)
            print(f"{'passed' if check.is_passed else 'FAILED'}  {check.name}: {check.apart:.1e}", file=out, flush=True)
    if not all(check.is_passed for check in done):
        sys.exit(1)
    size = 8192 if device.type == "cuda" else 1024
    rate = product_rate(Clock(device), device, dtype, size)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"\n{card}: {rate / 1e12:.2f} TFLOP/s in products of {workload.precision}\n", file=out)
    measured = replace(
        workload,
        shape=arguments.shape,
        tokens=arguments.tokens,
        document=min(arguments.document, arguments.tokens),
        draft_vocabulary=arguments.draft_vocabulary,
    )
    ways = [way for way in arguments.attention if way == "plain" or device.type == "cuda"]
    if ways != arguments.attention:
        print("FlexAttention is left out: torch has its gradients on GPUs alone\n", file=out)
    rows = [
        speed(
            replace(measured, fraction=fraction, steps=steps),
            device,
            rate,
            compiled=arguments.compile,
            attention=attention,
        )
        for steps in arguments.steps
        for fraction in arguments.fractions
        for attention in ways
    ]
    if arguments.json:
        told = [{"name": one.name, "apart": one.apart, "allowed": one.allowed} for one in done]
        print(json.dumps({"device": card, "product_rate": rate, "checks": told, "speed": rows}, indent=2))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
