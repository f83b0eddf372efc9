"""A training in two phases: the loop twice, the second time from the first one's best draft and with other options.

The first phase's folder gets its name when the phase is through, so that a killed training knows where it was; it is
removed at the end.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from speculators.recipe.phases import Phase, phases
from speculators.recipe.shapes.recipe import Algorithm
from speculators.recipe.shapes.train import Train
from speculators.training.loop import RESULT, SAVES, TrainingInputs, train
from speculators.training.ranks import ALONE, Ranks
from speculators.training.stop_signals import StopSignals

FOLDER = "first-phase"

Opened = Callable[[Phase, Path, Path | None], TrainingInputs]
"""A phase's inputs, with the folder it writes into and that of the phase before, None for the first."""


def train_in_phases(opened: Opened, algorithm: Algorithm, options: Train, output: Path, ranks: Ranks = ALONE) -> None:
    """Train one phase or two until they are through; whatever an earlier attempt did of either is taken up again.

    `output` is then as `loop.train` leaves it: the second phase's draft, and the figures of both, with steps that count
    on. `ranks` are those of the inputs.
    """
    first, *later = phases(algorithm, options)
    if not later:
        train(opened(first, output, None))
        return
    (second,) = later
    done, partial = output / FOLDER, output / f".{FOLDER}.partial"
    if not ranks.any(not (output / RESULT).is_file()):  # killed when all was done but the tidying
        for folder in (done, partial, output / SAVES):
            shutil.rmtree(folder, ignore_errors=True)
        return
    if ranks.any(not done.is_dir()):
        partial.mkdir(exist_ok=True)
        train(replace(opened(first, partial, None), later_epochs=second.options.epochs))
    with StopSignals() as stop:  # who asks between the phases is heard in the second
        if ranks.is_first and not done.is_dir():
            partial.rename(done)
        ranks.any(False)  # nobody looks for it before it is there
        gc.collect()  # the first phase's draft and moments
        inputs = opened(second, output, done)
        inputs.report.message(f"second phase, after step {inputs.before.steps}")
        train(inputs, stop)
        if ranks.is_first:
            shutil.rmtree(done.rename(partial))
