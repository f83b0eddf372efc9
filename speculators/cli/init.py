"""`speculators init [NAME]`: a commented recipe to start from."""

from __future__ import annotations

import re
from pathlib import Path

import rich_click as click

from speculators.errors import UsageError

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_IGNORED = "runs/"


@click.command("init")
@click.argument("name", default="my-draft")
@click.option(
    "--verifier", default="Qwen/Qwen3-8B", show_default=True, metavar="MODEL", help="The model to make faster."
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def command(name: str, verifier: str, force: bool) -> None:
    """Write NAME.yaml, with everything a recipe may say, and keep runs out of git."""
    from speculators.recipe.write import starter

    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a recipe: lower-case letters, digits, `.` and `-`")
    target = Path(f"{name}.yaml")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; add --force to write over it")
    target.write_text(starter(name, verifier), encoding="utf-8")
    ignore = Path(".gitignore")
    before = ignore.read_text(encoding="utf-8") if ignore.is_file() else ""
    if _IGNORED not in before.splitlines():
        ignore.write_text(
            before + ("" if before.endswith("\n") or not before else "\n") + _IGNORED + "\n", encoding="utf-8"
        )
    click.echo(
        f"{target}: check it with `speculators validate {target}`, see the plan with `speculators plan {target}`"
    )
