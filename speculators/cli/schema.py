"""`speculators schema [PATH]`: what a recipe may say, section by section."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import rich_click as click

from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.recipe.schema import Field


@click.command("schema")
@click.argument("path", default="")
@click.option("--json", "as_json", is_flag=True, help="The JSON Schema of it, with everything it refers to.")
def command(path: str, as_json: bool) -> None:
    """Show what a recipe may say at PATH, such as train.optimizer; without PATH, its sections."""
    from speculators.recipe.schema import fields_at, recipe_schema

    found = fields_at(path) if path else ()
    if path and not found:
        raise UsageError(_unknown(path))
    if as_json:
        shown: Any = recipe_schema() if not path else [field.schema for field in found]
        click.echo(json.dumps(shown[0] if path and len(shown) == 1 else shown, indent=2, ensure_ascii=False))
        return
    _show(found)


def _show(found: tuple[Field, ...]) -> None:
    from rich.console import Console

    from speculators.recipe.schema import fields

    console = Console(highlight=False)
    for field in found:
        console.print(f"[bold]{_escape(field.path)}[/]  {_escape(_facts(field))}")
        console.print(_escape(str(field.schema.get("description", ""))))
    prefixes = {field.path for field in found} or {""}
    below = [field for field in fields() if field.section.removesuffix("[]") in prefixes]
    if below:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("key", "values", "default", "meaning"):
            table.add_column(title, overflow="fold")
        for field in below:
            name = f"{field.name} ({field.branch})" if field.branch else field.name
            default = _escape(_default(field))
            table.add_row(_escape(name), _escape(_values(field)), default, _escape(_meaning(field)))
        console.print(table)


def _facts(field: Field) -> str:
    default = _default(field)
    return _values(field) + (f", default {default}" if default else ", required")


def _values(field: Field) -> str:
    from speculators.recipe.problems import expected

    schema = field.schema
    if "enum" in schema:
        return " | ".join("null" if value is None else str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    unit = f" ({schema['x-unit']})" if "x-unit" in schema else ""
    return expected(schema) + unit


def _default(field: Field) -> str:
    from speculators.recipe.write import inline

    if "default" not in field.schema:
        return ""
    is_section = field.schema["default"] == {}
    return "as below" if is_section else inline(field.schema["default"])


def _meaning(field: Field) -> str:
    note = " Does not decide what is made." if field.is_operational else ""
    return f"{field.schema.get('description', '')}{note}"


def _unknown(path: str) -> str:
    from difflib import get_close_matches

    from speculators.recipe.schema import fields

    paths = list(dict.fromkeys(field.path for field in fields()))
    near = get_close_matches(path, paths, n=3, cutoff=0.5)
    near = near or [known for known in paths if known.rpartition(".")[2] == path.rpartition(".")[2]]
    return f"no recipe has `{path}`" + (f"; nearest: {', '.join(near)}" if near else "")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
