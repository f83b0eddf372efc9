"""`speculators convert SOURCE --verifier MODEL`: a draft of another project, in the format that vLLM serves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from speculators.cli.asked import Asked, consent, planned, runs_option, store_option
from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.pipeline.run import Outcome

FORMATS = (
    *("auto", "eagle3", "eagle3.1", "modelopt", "specforge", "eagle", "medusa", "hydra", "mlp_speculator"),
    *("draft_model", "peagle", "dflash", "dspark", "mtp", "speculators"),
)
RECIPE = "bases/convert.yaml"
"""The shipped recipe that this command fills in."""


@click.command("convert")
@click.argument("source")
@click.option("--verifier", required=True, metavar="MODEL", help="The model it drafts for: a hub id or a folder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A new folder for the checkpoint.")
@click.option(
    "--format", "wanted", type=click.Choice(FORMATS), default="auto", show_default=True, help="What SOURCE is."
)
@click.option(
    "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change a value of the recipe behind it. Repeatable."
)
@store_option
@runs_option
@click.option("--offline", is_flag=True, help="Use only what is on this machine; no network.")
def command(
    source: str,
    verifier: str,
    output: Path | None,
    wanted: str,
    sets: tuple[str, ...],
    store: Path | None,
    runs: Path,
    offline: bool,
) -> int:
    """Convert SOURCE, a draft of another project, to the speculators format.

    SOURCE is a hub id, perhaps with @REVISION, a folder, or a weights file with its config.json beside it; with
    --format mtp it is the verifier, whose own head is taken out. This is a recipe like any other: `--set
    eval.acceptance={}` measures the draft as well.
    """
    from speculators.cli.live import showing
    from speculators.cli.run import resolved_text, summary
    from speculators.pipeline.executors.local import LocalExecutor
    from speculators.pipeline.folder import create_run, previous_run
    from speculators.pipeline.run import run_plan

    if output is not None:
        check_new(output)
    asked = Asked(
        recipe=RECIPE,
        sets=(*recipe_sets(source, verifier, wanted), *sets),
        overlay=(),
        only=(),
        start=(),
        until=(),
        force=(),
        store=store,
        offline=offline,
        trust_remote_code=False,
        engine_arguments=(),
    )
    loaded, plan = planned(asked)
    texts = {"recipe.yaml": resolved_text(loaded), "recipe.resolved.yaml": resolved_text(loaded)}
    folder = create_run(runs, plan, consent=consent(asked), texts=texts)
    with showing(as_json=False) as (_, listen):
        outcome = run_plan(
            plan, folder, LocalExecutor(30.0), listener=listen, previous=previous_run(runs, plan.assembly.name)
        )
    if plan["convert"].state == "cached":
        conversion = folder.path / "steps" / "convert" / "conversion.json"
        for line in json.loads(conversion.read_text(encoding="utf-8"))["summary"]:
            click.echo(line)
    return _told(folder.path, outcome, output, summary(folder.path, outcome))


def recipe_sets(source: str, verifier: str, wanted: str) -> tuple[str, ...]:
    """What a conversion adds to the shipped recipe, as `--set` would."""
    given = {
        "name": recipe_name(source),
        "verifier.model": _place(verifier),
        "convert.source": _place(source),
        "convert.format": wanted,
    }
    return tuple(f"{path}={json.dumps(value)}" for path, value in given.items())


def recipe_name(source: str) -> str:
    """A recipe's name out of a source: its last part, in the letters that a name may have."""
    last = re.split(r"[/\\]", source.partition("@")[0].rstrip("/\\"))[-1].lower()
    return re.sub(r"[^a-z0-9.-]+", "-", last).strip("-.")[:100] or "converted"


def check_new(output: Path) -> None:
    """Raise UsageError unless the folder can be made, or is there and empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is already there; name a new folder")


def copy_checkpoint(artifact: Path, output: Path) -> None:
    """The files of a checkpoint artifact in a folder of the user's own: all of them or none."""
    beside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for file in sorted(artifact.iterdir()):
        if file.name != "artifact.json":
            shutil.copyfile(file, beside / file.name)
    if output.is_dir():
        output.rmdir()
    beside.replace(output)


def _place(name: str) -> str:
    """A path here as seen from everywhere; a hub id as it is. Raises UsageError for what can only be a path."""
    path = Path(name).expanduser()
    if not path.exists() and name.startswith(("/", "./", "../", "~")):
        raise UsageError(f"there is no {name}")
    return str(path.resolve()) if path.exists() else name


def _told(folder: Path, outcome: Outcome, output: Path | None, lines: list[str]) -> int:
    checkpoint = folder / "steps" / "checkpoint"
    if output is not None and outcome.exit_code == 0:
        copy_checkpoint(checkpoint.resolve(), output)
        lines = [*lines[:-1], f"written             {output}", lines[-1]]
    for line in lines:
        click.echo(line)
    for failure in outcome.failures:
        click.echo(f"\n{failure}", err=True)
    return outcome.exit_code
