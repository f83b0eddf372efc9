"""`speculators recipes list|show|copy`: the recipes that came with speculators."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from speculators.errors import UsageError


@click.group("recipes")
def command() -> None:
    """The recipes that came with speculators."""


@command.command("list")
@click.argument("query", default="")
def list_(query: str) -> None:
    """List shipped recipes; QUERY is a word of the name or the description."""
    from speculators.recipe.compose import read_text, shipped_names
    from speculators.recipe.nodes import plain
    from speculators.recipe.source import read

    found = [
        (name, plain(read(read_text(find_shipped_file(name)))).get("description") or "") for name in shipped_names()
    ]
    chosen = [(name, about) for name, about in found if query.lower() in f"{name} {about}".lower()]
    if not chosen:
        raise UsageError(f"no shipped recipe has {query!r} in its name or description")
    width = max(len(name) for name, _ in chosen)
    for name, about in chosen:
        click.echo(f"{name:<{width}}  {about}".rstrip())


@command.command()
@click.argument("name")
@click.option("--resolved", is_flag=True, help="With everything it extends, and every default.")
def show(name: str, resolved: bool) -> None:
    """Print the recipe NAME."""
    from speculators.recipe.compose import find_recipe, read_text

    if resolved:
        from speculators.recipe.load import load_recipe
        from speculators.recipe.write import to_yaml

        click.echo(to_yaml(load_recipe(name).data), nl=False)
    else:
        click.echo(read_text(find_recipe(name)).text, nl=False)


@command.command()
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), required=False)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def copy(name: str, destination: Path | None, force: bool) -> None:
    """Copy the shipped recipe NAME to DESTINATION, or into this folder."""
    from speculators.recipe.compose import read_text
    from speculators.recipe.write import modeline

    source = find_shipped_file(name)
    target = destination or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; add --force to write over it")
    lines = read_text(source).text.splitlines(keepends=True)
    # The schema lies elsewhere, seen from the copy.
    lines = [modeline() + "\n" if line.startswith("# yaml-language-server:") else line for line in lines]
    target.write_text("".join(lines), encoding="utf-8")
    click.echo(str(target))


def find_shipped_file(name: str) -> Path:
    """The shipped recipe of that name; raises UsageError, naming the nearest, when there is none."""
    from speculators.recipe.compose import find_shipped, no_such_recipe

    found = find_shipped(name)
    if found is None:
        raise no_such_recipe(name)
    return found
