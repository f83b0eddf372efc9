"""The options that `run` and `plan` share, and the way from them to a plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from speculators.pipeline.plan import Plan
    from speculators.recipe.load import Loaded

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asked:
    """What the command line asked for."""

    recipe: str
    sets: tuple[str, ...]
    overlay: tuple[Path, ...]
    only: tuple[str, ...]
    start: tuple[str, ...]
    until: tuple[str, ...]
    force: tuple[str, ...]
    store: Path | None
    offline: bool
    trust_remote_code: bool


def store_option(command: _Command) -> _Command:
    """`--store DIR`, for every command that looks into the store."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SPECULATORS_STORE",
        help="Where artifacts are kept. [default: the user's cache folder, or $SPECULATORS_STORE]",
    )(command)


def runs_option(command: _Command) -> _Command:
    """`--runs DIR`, for every command that looks at runs."""
    return click.option(
        "--runs",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("runs"),
        show_default=True,
        help="Where the folders of runs are kept.",
    )(command)


def recipe_options(command: _Command) -> _Command:
    """The recipe, changes to it, and which of its steps."""
    for decorate in reversed(
        (
            click.argument("recipe"),
            click.option(
                "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change a value of the recipe. Repeatable."
            ),
            click.option(
                "--overlay",
                multiple=True,
                type=click.Path(path_type=Path, exists=True, dir_okay=False),
                help="Merge another YAML file over the recipe. Repeatable.",
            ),
            click.option("--only", multiple=True, metavar="STEP", help="Run only this step; its inputs must be there."),
            click.option("--from", "start", multiple=True, metavar="STEP", help="This step and what depends on it."),
            click.option("--until", multiple=True, metavar="STEP", help="This step and what it needs."),
            click.option(
                "--force", multiple=True, metavar="STEP", help="Run this step again, and what is made from it."
            ),
            store_option,
            click.option("--offline", is_flag=True, help="Use only what is on this machine; no network."),
            click.option(
                "--trust-remote-code",
                is_flag=True,
                help="Allow code from the verifier's repository, if the recipe asks.",
            ),
        )
    ):
        command = decorate(command)
    return command


def planned(asked: Asked) -> tuple[Loaded, Plan]:
    """Load the recipe and plan it; raises RecipeError and UsageError."""
    from speculators.pipeline.plan import Selection, make_plan
    from speculators.pipeline.store import Store, default_store
    from speculators.recipe.load import load_recipe
    from speculators.steps import assemble

    if asked.offline:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    loaded = load_recipe(asked.recipe, asked.overlay, asked.sets, trust_remote_code=asked.trust_remote_code)
    assembly = assemble(loaded.recipe, loaded.data, loaded.origins)
    selection = Selection(asked.only, asked.start, asked.until, asked.force)
    return loaded, make_plan(assembly, Store.open(asked.store or default_store()), selection)
