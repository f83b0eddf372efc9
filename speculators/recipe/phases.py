"""A training as its phases: the recipe's own, and the second one that `train.second_phase` describes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.recipe import Algorithm
from speculators.recipe.shapes.train import Train


@dataclass(frozen=True)
class Phase:
    """One phase, with the whole options that it is trained by."""

    algorithm: Algorithm
    options: Train


def phases(algorithm: Algorithm, options: Train) -> tuple[Phase, ...]:
    """One or two phases, none of which has a second one; the second begins with a draft, not with a checkpoint."""
    change = options.second_phase
    first = Phase(algorithm, msgspec.structs.replace(options, second_phase=None))
    if change is None:
        return (first,)
    loss = change.loss.named()
    if loss:
        algorithm = msgspec.structs.replace(algorithm, loss=msgspec.structs.replace(algorithm.loss, **loss))
    second = msgspec.structs.replace(
        first.options,
        epochs=change.epochs,
        optimizer=change.optimizer or options.optimizer,
        schedule=change.schedule or options.schedule,
        initialize_from=None,
    )
    return first, Phase(algorithm, second)


def phase_findings(algorithm: Algorithm, options: Train) -> Iterator[Finding]:
    """Losses that the algorithm does not have, and what is wrong with the second phase's alone."""
    if options.second_phase is None:
        return
    here = ("train", "second_phase", "loss")
    has = getattr(getattr(algorithm, "loss", None), "__struct_fields__", ())
    unknown = [name for name in options.second_phase.loss.named() if name not in has]
    for name in unknown:
        what = f"`train.second_phase.loss.{name}` changes a loss that {algorithm.name} does not have"
        yield Finding((*here, name), what, f"it has: {', '.join(has)}" if has else "remove it")
    if unknown:
        return
    before = set(algorithm.findings())
    for finding in phases(algorithm, options)[1].algorithm.findings():
        if finding not in before:
            yield Finding(here, f"in the second phase, {finding.what}", finding.hint)
