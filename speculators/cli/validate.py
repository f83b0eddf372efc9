"""`speculators validate RECIPE...`: every problem of recipes, without network and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from speculators.errors import Problem, SpeculatorsError


@click.command("validate")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change a value of the recipes. Repeatable.")
@click.option(
    "--overlay",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Merge another YAML file over the recipes. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="The problems as JSON.")
@click.pass_context
def command(
    ctx: click.Context, recipes: tuple[str, ...], sets: tuple[str, ...], overlay: tuple[Path, ...], as_json: bool
) -> None:
    """Check recipes: RECIPE is a file, or the name of a recipe that came with speculators.

    Exits with 2 when one of them has a problem.
    """
    found = [_checked(name, overlay, sets, say=not as_json) for name in recipes]
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    wrong = [entry for entry in found if not entry["valid"]]
    if wrong:
        if not as_json:
            count = sum(len(entry["problems"]) for entry in wrong)
            click.echo(f"{count} problem{'s' if count > 1 else ''}", err=True)
        ctx.exit(2)


def _checked(name: str, overlays: tuple[Path, ...], sets: tuple[str, ...], *, say: bool) -> dict[str, Any]:
    """What is wrong with one recipe; also printed, if `say`."""
    from speculators.errors import RecipeError, UsageError

    try:
        _load(name, overlays, sets)
    except (RecipeError, UsageError) as error:
        if say:
            click.echo(str(error), err=True)
        return {"recipe": name, "valid": False, "problems": _as_json(error)}
    if say:
        click.echo(f"{name}: valid")
    return {"recipe": name, "valid": True, "problems": []}


def _load(name: str, overlays: tuple[Path, ...], sets: tuple[str, ...]) -> None:
    """Load, and check against the verifier's config if that lies in a folder here."""
    from speculators.errors import RecipeError
    from speculators.recipe.crossfield import check
    from speculators.recipe.load import load_recipe

    loaded = load_recipe(name, overlays, sets)
    model = loaded.recipe.verifier.model
    if model is not None and Path(model).is_dir():
        from speculators.verifiers.facts import VerifierFacts

        problems = check(loaded.recipe, VerifierFacts.from_directory(Path(model)), loaded.origins)
        if problems:
            raise RecipeError(problems)


def _as_json(error: SpeculatorsError) -> list[dict[str, Any]]:
    problems: tuple[Problem, ...] = getattr(error, "problems", ())
    if not problems:
        return [{"file": None, "line": None, "column": None, "what": str(error), "hint": ""}]
    return [
        {
            "file": problem.place.file,
            "line": problem.place.line,
            "column": problem.place.column,
            "what": problem.what,
            "hint": problem.hint,
        }
        for problem in problems
    ]
