"""The training loop: batches in, steps of the optimizer, validation now and then, saves to go on from.

Everything that could differ between an interrupted and an uninterrupted training is a function of the seed and the
number of steps done, so the two end in the same bits.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from speculators.algorithms.base import Objective, add_measured, divided
from speculators.pipeline.step import Reporter
from speculators.recipe.shapes.train import Train
from speculators.training import checkpointing
from speculators.training.batches import Course, TrainingData
from speculators.training.optimizers import Optimizer
from speculators.training.schedules import rate
from speculators.training.validation import validate

LOG_STEPS = 10
"""Optimizer steps behind each line of metrics."""


class Silent:
    """A reporter that tells nobody."""

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def metric(self, at: int, values: Mapping[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


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


def train(inputs: TrainingInputs) -> dict[str, Any]:
    """Train until the course is through; what an earlier attempt saved in `output` is taken up again.

    Writes `model.safetensors` (the draft with the best walk estimate on held-out documents; the last one when none are
    held out), `draft.json`, `metrics.jsonl` and `result.json`, whose content is returned. On SIGTERM or SIGINT the
    state is saved and KeyboardInterrupt raised.
    """
    with _StopSignals() as stop:
        return _Training(inputs, stop).run()


class _Training:
    def __init__(self, inputs: TrainingInputs, stop: _StopSignals) -> None:
        options, tokens = inputs.options, inputs.data.tokens
        self.inputs, self.stop = inputs, stop
        self.network = inputs.objective.network
        self.optimizer = Optimizer(self.network, options.optimizer)
        self.course = Course.plan(tokens, epochs=options.epochs, budget=options.tokens_per_step, seed=inputs.seed)
        self.holdout = tokens.holdout_documents[: options.validation.documents]
        self.total_tokens = options.epochs * int(tokens.lengths[tokens.train_documents].sum())
        self.saves = inputs.output / "checkpoints"
        self.metrics = inputs.output / "metrics.jsonl"
        self.progress = checkpointing.restore(self.saves, self.network, self.optimizer)
        self.metrics.touch()
        os.truncate(self.metrics, self.progress.metrics_bytes)

    def run(self) -> dict[str, Any]:
        steps, progress = len(self.course.batches), self.progress
        if progress.step:
            self.inputs.report.message(f"going on after step {progress.step} of {steps}")
        while True:
            if self._validation_is_due():
                self._validate()
            if progress.step == steps:
                return self._finish()
            self._step(steps)
            self._log(steps)
            if self.stop.asked:
                self._save_and_stop()
            if progress.step % self.inputs.options.checkpoint.every == 0 and progress.step < steps:
                self._save()

    def _step(self, steps: int) -> None:
        """One batch, forward, backward, and the optimizer."""
        clock, progress, options = time.perf_counter(), self.progress, self.inputs.options
        batch = self.inputs.data.batch(self.course.batches[progress.step])
        evaluation = self.inputs.objective.evaluate(batch, _noise(self.inputs.seed, progress.step))
        if evaluation.measured:  # else no document of the batch has anything to learn from
            evaluation.loss.backward()  # type: ignore[no-untyped-call]
            norm = self.optimizer.step(rate(options.schedule, progress.step, steps), options.gradient_clip)
            add_measured(progress.window, {**evaluation.measured, "gradient_norm": (norm, 1.0)})
        progress.step += 1
        progress.tokens += batch.tokens
        spent = time.perf_counter() - clock
        progress.seconds += spent
        add_measured(progress.window, {"tokens_per_second": (float(batch.tokens), spent)})

    def _log(self, steps: int) -> None:
        """Tell the figures of the last steps, all divided only now."""
        progress = self.progress
        self.inputs.report.progress(progress.tokens, self.total_tokens, "tokens")
        if progress.step % LOG_STEPS and progress.step != steps:
            return
        learning_rate = rate(self.inputs.options.schedule, progress.step - 1, steps)
        learning_rate *= self.inputs.options.optimizer.learning_rate
        self._write(divided(progress.window) | {"learning_rate": learning_rate})
        progress.window = {}

    def _write(self, values: Mapping[str, float]) -> None:
        line = json.dumps({"at": self.progress.step, **values}) + "\n"
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(line)
        self.progress.metrics_bytes += len(line.encode())
        self.inputs.report.metric(self.progress.step, values)

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
            between=lambda: self._save_and_stop() if self.stop.asked else None,
        ).figures()
        progress = self.progress
        progress.validated = progress.step
        progress.last = {"at": progress.step, **found}
        self._write({f"holdout_{name}": value for name, value in found.items()})
        if not progress.best or _merit(progress.last) > _merit(progress.best):
            progress.best = progress.last
            checkpointing.save_best(self.inputs.output / "model.safetensors", self.network)

    def _save(self) -> None:
        keep = self.inputs.options.checkpoint.keep
        checkpointing.save(self.saves, self.network, self.optimizer, self.progress, keep=keep)

    def _save_and_stop(self) -> None:
        self._save()
        raise KeyboardInterrupt

    def _finish(self) -> dict[str, Any]:
        progress, output = self.progress, self.inputs.output
        if not progress.best:
            checkpointing.save_best(output / "model.safetensors", self.network)
        result = {
            "best": _described(progress.best),
            "final": _described(progress.last),
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else None,
        }
        (output / "draft.json").write_text(json.dumps(self.inputs.draft, indent=2) + "\n", encoding="utf-8")
        (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(self.saves, ignore_errors=True)
        return result


class _StopSignals:
    """Notes SIGTERM and SIGINT instead of breaking off in the middle of a step; a second one does break off."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _noise(seed: int, step: int) -> torch.Generator:
    """The generator of one step's feature noise: the same whenever that step is taken."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))


def _merit(figures: Mapping[str, float]) -> tuple[float, float]:
    """Better is larger: the walk estimate, then the loss."""
    return figures.get("walk_estimate", 0.0), -figures.get("loss", 0.0)


def _described(figures: Mapping[str, float]) -> dict[str, Any]:
    """A validation's figures for result.json, the walk's rates as a list."""
    rates = [figures[name] for name in sorted(figures) if name.startswith("walk_") and name != "walk_estimate"]
    plain = {name: value for name, value in figures.items() if not name.startswith("walk_") or name == "walk_estimate"}
    return {**plain, "positions": rates} if figures else {}
