"""The training loop: batches in, steps of the optimizer, validation now and then, saves to go on from.

Everything that could differ between an interrupted and an uninterrupted training is a function of the seed and the
number of steps done, so the two end in the same bits. Several processes do together what one would do, but for the
order of sums (`training/ranks.py`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speculators.algorithms.base import Noise, Objective, add_measured, divided, summed
from speculators.pipeline.machine import peak_memory
from speculators.pipeline.step import Reporter
from speculators.recipe.shapes.train import Train
from speculators.training import checkpointing
from speculators.training.ahead import Ahead
from speculators.training.batches import Course, TrainingData
from speculators.training.copies import Sent
from speculators.training.optimizers import Optimizer
from speculators.training.ranks import ALONE, Ranks
from speculators.training.schedules import rate
from speculators.training.shares import share
from speculators.training.stop_signals import StopSignals
from speculators.training.trackers import Tracker
from speculators.training.validation import judged_documents, validate

LOG_STEPS = 10
"""Optimizer steps behind each line of metrics."""

RESULT = "result.json"
"""The last file that a training writes: where it is, nothing is left to do."""

SAVES = "checkpoints"
"""The directory of saves, beside it until then."""

_Share = tuple[list[int], Sent]
"""Numbers of documents, and the documents on their way."""


class Silent:
    """A reporter that tells nobody."""

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def metric(self, at: int, values: Mapping[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


@dataclass(frozen=True)
class Before:
    """What an earlier phase of the same training did; this one's figures go on from there."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    metrics: bytes = b""
    """The lines of its metrics."""


@dataclass(frozen=True)
class TrainingInputs:
    """All that a training depends on. `output` is the directory of the artifact, and of saves while it runs."""

    objective: Objective
    data: TrainingData
    options: Train
    seed: int
    output: Path
    draft: Mapping[str, Any] = field(default_factory=dict)
    """The draft's part of config.json, written as draft.json."""
    report: Reporter = field(default_factory=Silent)
    begin: Callable[[Course, int], None] | None = None
    """Called before the first batch with the course and how many of its batches are done; the others are asked for."""
    ranks: Ranks = ALONE
    """The processes that train this draft together, all with the same inputs; only the first one writes."""
    tracker: Tracker | None = None
    """Told every figure that is logged; after an interruption, those since the last save a second time."""
    before: Before = Before()
    """Steps count from its last one, in figures and in the result; times and tokens are of both."""
    later_epochs: int = 0
    """Epochs of the phase that follows this one, for how much there is to do."""


def train(inputs: TrainingInputs, stop: StopSignals | None = None) -> dict[str, Any]:
    """Train until the course is through; what an earlier attempt saved in `output` is taken up again.

    Writes `model.safetensors` (the draft with the best walk estimate on held-out documents; the last one when none are
    held out), `draft.json`, `metrics.jsonl` and `result.json`, whose content is returned. On SIGTERM or SIGINT the
    state is saved and KeyboardInterrupt raised, in every process when one of them is asked. Who listens for signals
    already gives `stop`.
    """
    if not inputs.ranks.any(not (inputs.output / RESULT).is_file()):  # killed when all was done but the publishing
        return _tidied(inputs.output)
    if stop is not None:
        return _Training(inputs, stop).run()
    with StopSignals() as stop:
        return _Training(inputs, stop).run()


class _Training:
    def __init__(self, inputs: TrainingInputs, stop: StopSignals) -> None:
        options, tokens = inputs.options, inputs.data.tokens
        self.inputs, self.stop, self.ranks = inputs, stop, inputs.ranks
        self.network = inputs.objective.network
        self.optimizer = Optimizer(self.network, options.optimizer)
        self.course = Course.plan(tokens, epochs=options.epochs, budget=options.tokens_per_step, seed=inputs.seed)
        self.holdout = judged_documents(tokens, options.validation)
        self.before = inputs.before
        epoch_tokens = int(tokens.lengths[tokens.train_documents].sum())
        self.total_tokens = self.before.tokens + (options.epochs + inputs.later_epochs) * epoch_tokens
        self.saves = inputs.output / SAVES
        self.metrics = inputs.output / "metrics.jsonl"
        self.progress = checkpointing.restore(self.saves, self.network, self.optimizer) or self._beginning()
        if self.ranks.is_first:
            if not self.progress.step:
                self.metrics.write_bytes(self.before.metrics)
            os.truncate(self.metrics, self.progress.metrics_bytes)
        else:
            self.progress.window = {}  # the first has it for all
        self.ranks.any(False)  # nobody saves or removes anything before all have read

    def _beginning(self) -> checkpointing.Progress:
        before = self.before
        return checkpointing.Progress(
            tokens=before.tokens, seconds=before.seconds, waited=before.waited, metrics_bytes=len(before.metrics)
        )

    @property
    def _at(self) -> int:
        """Steps done in all phases."""
        return self.before.steps + self.progress.step

    def run(self) -> dict[str, Any]:
        steps, progress = len(self.course.batches), self.progress
        if progress.step:
            self.inputs.report.message(f"going on after step {self._at} of {self.before.steps + steps}")
        if self.inputs.begin is not None:
            self.inputs.begin(self.course, progress.step)
        with closing(Ahead(self._read, range(progress.step, steps))) as ahead:
            self._train(ahead, steps)
        return self._finish()

    def _train(self, ahead: Ahead[int, _Share], steps: int) -> None:
        progress = self.progress
        while True:
            if self._validation_is_due():
                self._validate()
            if progress.step == steps:
                return
            self._step(ahead, steps)
            self._log(steps)
            self._stop_if_asked()
            if progress.step % self.inputs.options.checkpoint.every == 0 and progress.step < steps:
                self._save()

    def _read(self, step: int) -> _Share:
        """This process's part of the batch of one step; called ahead, in a thread of its own."""
        data = self.inputs.data
        own = share(data.tokens, self.course.batches[step], self.ranks)
        return own, data.sent(own)

    def _step(self, ahead: Ahead[int, _Share], steps: int) -> None:
        """One batch, forward, backward, and the optimizer; each process has its share of the documents."""
        clock, progress, options = time.perf_counter(), self.progress, self.inputs.options
        tokens, documents = self.inputs.data.tokens, self.course.batches[progress.step]
        own, coming = ahead.take()
        waited = time.perf_counter() - clock
        noise = _noise(self.inputs.seed, progress.step, own)
        evaluation = self.inputs.objective.evaluate(coming.arrived(), noise, self.ranks.total)
        if evaluation.measured or self.ranks.is_sharded:
            evaluation.loss.backward()  # type: ignore[no-untyped-call]
        if self.ranks.any(bool(evaluation.measured)):  # else no document of the batch has anything to learn from
            self.ranks.sum_gradients(self.network.parameters())
            now = rate(options.schedule, progress.step, steps)
            norm = self.optimizer.step(now, options.gradient_clip, options.gradient_clip_value)
            add_measured(progress.window, evaluation.measured)
            self._note(gradient_norm=(norm, 1.0))
        else:
            self.optimizer.forget()
        progress.step += 1
        size = int(tokens.lengths[list(documents)].sum())
        progress.tokens += size
        spent = time.perf_counter() - clock
        progress.seconds += spent
        progress.waited += waited
        self._note(tokens_per_second=(float(size), spent), data_wait=(waited, spent))

    def _note(self, **figures: tuple[float, float]) -> None:
        """Figures of a whole step: every process has them, and adds its part."""
        parts = self.ranks.count
        shared = {name: (value / parts, count / parts) for name, (value, count) in figures.items()}
        add_measured(self.progress.window, shared)

    def _log(self, steps: int) -> None:
        """Tell the figures of the last steps, all summed over the processes and divided only now."""
        progress = self.progress
        self.inputs.report.progress(progress.tokens, self.total_tokens, "tokens")
        if progress.step % LOG_STEPS and progress.step != steps:
            return
        learning_rate = rate(self.inputs.options.schedule, progress.step - 1, steps)
        learning_rate *= self.inputs.options.optimizer.learning_rate
        self._gather_window()
        memory = _most_memory(self.network)
        self._write(divided(progress.window) | {"learning_rate": learning_rate, "memory": memory})
        progress.window = {}

    def _gather_window(self) -> None:
        """Give the figures of all processes since the last line of metrics to the first."""
        windows = self.ranks.gathered(self.progress.window)
        self.progress.window = summed(windows) if self.ranks.is_first else {}

    def _write(self, values: Mapping[str, float]) -> None:
        if not self.ranks.is_first:
            return
        line = json.dumps({"at": self._at, **values}) + "\n"
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(line)
        self.progress.metrics_bytes += len(line.encode())
        self.inputs.report.metric(self._at, values)
        if self.inputs.tracker is not None:
            self.inputs.tracker.log(self._at, values)

    def _validation_is_due(self) -> bool:
        """Whether this step ends an epoch (or `every` steps, or everything) and has not been judged."""
        step, every = self.progress.step, self.inputs.options.validation.every
        if not self.holdout or step == self.progress.validated:
            return False
        is_last = step == len(self.course.batches)
        return is_last or (step in self.course.epoch_ends if every is None else step % every == 0)

    def _validate(self) -> None:
        """Judge the held-out documents; keep the draft when it is the best so far."""
        found = validate(
            self.inputs.objective,
            self.inputs.data,
            self.holdout,
            budget=self.inputs.options.tokens_per_step,
            ranks=self.ranks,
            between=self._stop_if_asked,
        ).figures()
        progress = self.progress
        progress.validated = progress.step
        progress.last = {"at": self._at, **found}
        self._write({f"holdout_{name}": value for name, value in found.items()})
        if not progress.best or _merit(progress.last) > _merit(progress.best):
            progress.best = progress.last
            self._keep_draft()

    def _keep_draft(self) -> None:
        if self.ranks.is_first or self.ranks.is_sharded:
            file = self.inputs.output / "model.safetensors"
            checkpointing.save_best(file, self.network, writes=self.ranks.is_first)

    def _save(self) -> None:
        self._gather_window()
        keep = self.inputs.options.checkpoint.keep
        if self.ranks.is_first or self.ranks.is_sharded:
            saved = self.saves, self.network, self.optimizer, self.progress
            checkpointing.save(*saved, keep=keep, ranks=self.ranks)

    def _stop_if_asked(self) -> None:
        if self.ranks.any(self.stop.asked):
            self._save()
            self.ranks.any(False)  # who ends first must not take the others down before the save is whole
            raise KeyboardInterrupt

    def _finish(self) -> dict[str, Any]:
        progress, output = self.progress, self.inputs.output
        if not progress.best:
            self._keep_draft()
        result = {
            "best": _described(progress.best),
            "final": _described(progress.last),
            "steps": self._at,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else None,
            "data_wait": round(progress.waited / progress.seconds, 4) if progress.seconds else None,
        }
        if self.ranks.is_first:
            (output / "draft.json").write_text(json.dumps(self.inputs.draft, indent=2) + "\n", encoding="utf-8")
            checkpointing.write_at_once(output / RESULT, json.dumps(result, indent=2) + "\n")
            return _tidied(output)
        return result


def _tidied(output: Path) -> dict[str, Any]:
    """The result of a training that is through; its saves, of no use beside that, go."""
    shutil.rmtree(output / SAVES, ignore_errors=True)
    result: dict[str, Any] = json.loads((output / RESULT).read_text(encoding="utf-8"))
    return result


def _noise(seed: int, step: int, documents: Sequence[int]) -> Noise:
    """The feature noise of one step: a document's is the same whenever, and in whichever process, it is drawn."""

    def generator(place: int) -> torch.Generator:
        chance = random.Random(f"{seed}/{step}/{documents[place]}")  # noqa: S311  not for secrets
        return torch.Generator().manual_seed(chance.getrandbits(63))

    return generator


def _most_memory(network: torch.nn.Module) -> int:
    """The most bytes held so far: of the GPU's memory where the draft is on one, else of the machine's."""
    device = next(network.parameters()).device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def _merit(figures: Mapping[str, float]) -> tuple[float, float]:
    """Better is larger: the walk estimate, then the loss."""
    return figures.get("walk_estimate", 0.0), -figures.get("loss", 0.0)


def _described(figures: Mapping[str, float]) -> dict[str, Any]:
    """A validation's figures for result.json, the walk's rates as a list."""
    rates = [figures[name] for name in sorted(figures) if name.startswith("walk_") and name != "walk_estimate"]
    plain = {name: value for name, value in figures.items() if not name.startswith("walk_") or name == "walk_estimate"}
    return {**plain, "positions": rates} if figures else {}
