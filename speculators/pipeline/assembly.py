"""A recipe made ready for the pipeline: its steps, and what the pipeline must ask of floors above it.

The pipeline knows neither recipes nor particular steps. Whoever joins the two (`speculators.steps.assemble`) hands over
an `Assembly`. A worker is a process of its own, so `plan.json` carries the name of a function, `module:function`, that
makes the same assembly again out of the recipe's plain data; nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from speculators.pipeline.step import Step, View

Artifacts = Mapping[str, Path]
"""The folders of the artifacts that exist, by step."""


@dataclass(frozen=True)
class Gate:
    """One gate of a recipe, judged: its text, the value found (None: not measured), and whether it passed."""

    text: str
    value: float | None
    passed: bool


def _nothing_known(artifacts: Artifacts) -> Mapping[str, float]:
    return {}


def _nothing_to_check(artifacts: Artifacts) -> bool:
    return True


def _no_gates(run_folder: Path) -> tuple[Gate, ...]:
    return ()


def _no_results(run_folder: Path) -> None:
    return None


@dataclass(frozen=True)
class Assembly:
    """The steps of one recipe in order, and the questions the pipeline asks about the recipe.

    `reassemble` is `module:function`; that function is called with `data` in the worker's process.
    """

    name: str
    data: dict[str, Any]
    steps: tuple[Step, ...]
    reassemble: str
    semantic: Callable[[tuple[str, ...]], Mapping[str, Any]]
    """The declared part of the recipe as it enters a key: without operational fields and defaults."""
    view: Callable[[tuple[str, ...]], View]
    facts: Callable[[Artifacts], Mapping[str, float]] = _nothing_known
    """What estimates may use, known from the artifacts that exist."""
    check: Callable[[Artifacts], bool] = _nothing_to_check
    """Checks the recipe against what the artifacts say; raises RecipeError. False: too little is known yet, so it is
    asked again as soon as another artifact exists, before anything else starts."""
    gates: Callable[[Path], tuple[Gate, ...]] = _no_gates
    """Judges the recipe's gates on what lies in a run folder."""
    results: Callable[[Path], None] = _no_results
    """Writes `results.json` into a run folder that is over."""
    figures: tuple[str, ...] = ()
    """Steps, beside the inputs of those that are never cached, whose artifacts `gates` and `results` read."""
    trusts_remote_code: bool = False
    """The recipe's half of the consent to run code from a model's repository; the command line has the other."""


def resolve(reference: str) -> Callable[[dict[str, Any]], Assembly]:
    """The function behind `module:function`, as a plan names it."""
    module, _, function = reference.partition(":")
    return cast("Callable[[dict[str, Any]], Assembly]", getattr(import_module(module), function))
