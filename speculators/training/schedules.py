"""The learning rate over time, as a pure function of the step: nothing has to be saved to go on from anywhere."""

from __future__ import annotations

import math

from speculators.recipe.shapes.train import Schedule


def rate(schedule: Schedule, step: int, total: int) -> float:
    """The factor on the highest learning rate at optimizer step `step`, from 0, of `total`.

    It rises in equal parts to 1 over the first `warmup` share of the steps, then falls to `final` at the last one.
    """
    rising = round(schedule.warmup * total)
    if step < rising:
        return (step + 1) / rising
    if schedule.type == "constant":
        return 1.0
    done = min(1.0, (step - rising) / max(1, total - 1 - rising))
    share = 1 - done if schedule.type == "linear" else (1 + math.cos(math.pi * done)) / 2
    return schedule.final + (1 - schedule.final) * share
