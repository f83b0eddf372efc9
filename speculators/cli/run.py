"""`speculators run RECIPE`: do everything that a recipe says and that is not done yet."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from speculators.amounts import time_text
from speculators.cli.asked import Asked, consent, planned, recipe_options, remote_store, runs_option
from speculators.cli.where import WHERE, where, where_options
from speculators.errors import MachineError, UsageError

if TYPE_CHECKING:
    from speculators.pipeline.executors.base import Executor
    from speculators.pipeline.plan import Plan
    from speculators.pipeline.run import Outcome
    from speculators.pipeline.store import Store
    from speculators.recipe.load import Loaded
    from speculators.recipe.shapes.recipe import Recipe


@click.command("run")
@click.option_panel("What to run", options=["--set", "--overlay", "--only", "--from", "--until", "--force"])
@click.option_panel("Where artifacts are", options=["--store", "--remote", "--push"])
@click.option_panel("Where steps run", options=WHERE)
@recipe_options
@runs_option
@where_options
@click.option(
    "--json", "as_json", is_flag=True, help="Standard output gets exactly the events, one JSON object a line."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that steps get to save their state after SIGTERM or Ctrl-C, before they are killed.",
)
@click.option("--push", is_flag=True, help="Copy what this run makes, or finds here, to the remote store.")
@click.option("--yes", is_flag=True, help="Run although the estimates say that disk or memory will not do.")
@click.pass_context
def command(
    context: click.RichContext, /, runs: Path, as_json: bool, grace: float, push: bool, yes: bool, **options: Any
) -> int:
    """Run RECIPE: data, hidden states, training, checkpoint, evaluation, report.

    RECIPE is a file, or the name of a recipe that came with speculators. What was done before is not done again.
    Exit status: 0 done, 1 a step failed, 2 the recipe is wrong, 3 a gate was missed, 5 this machine cannot,
    130 interrupted.
    """
    from speculators.cli.live import showing
    from speculators.pipeline.folder import create_run, previous_run
    from speculators.pipeline.run import run_plan

    place, asked = where(context, options), Asked(**options)
    if push and not asked.remote:
        raise UsageError("--push needs --remote URL (or SPECULATORS_REMOTE), the store to push to")
    remote = remote_store(asked)
    common = asked.remote if remote else None
    executor = place.open(_store(asked).root, runs, grace, partial(click.echo, err=True), common)
    ray = place.executor == "ray"
    loaded, plan = planned(asked, executor.machine, remote=remote, meets_by_itself=ray, apart=place.apart)
    place.check([planned.name for planned in plan.steps], asked)
    check = partial(_check, recipe=loaded.recipe, executor=executor, anyway=yes)
    check(plan)
    previous = previous_run(runs, plan.assembly.name)
    texts = {"recipe.yaml": loaded.text, "recipe.resolved.yaml": resolved_text(loaded)}
    folder = create_run(runs, plan, consent=replace(consent(asked), anyway=yes), texts=texts)
    with showing(as_json=as_json) as (_, listen):
        push_to = remote if push else None
        outcome = run_plan(plan, folder, executor, listener=listen, previous=previous, push_to=push_to, check=check)
    for line in summary(folder.path, outcome):
        click.echo(line, err=as_json)
    for failure in outcome.failures:
        click.echo(f"\n{failure}", err=True)
    return outcome.exit_code


def resolved_text(loaded: Loaded) -> str:
    """The recipe with all that was merged into it and every default, as YAML that loads to the very same recipe."""
    import yaml

    return yaml.safe_dump(loaded.data, sort_keys=False, allow_unicode=True, width=120)


def _store(asked: Asked) -> Store:
    from speculators.pipeline.store import Store, default_store

    return Store.open(asked.store or default_store())


def _check(plan: Plan, recipe: Recipe, executor: Executor, *, anyway: bool) -> None:
    from speculators.pipeline.hardware import hardware_here
    from speculators.pipeline.plan import check_machine
    from speculators.steps.fits import check_gpus

    try:
        check_machine(plan, executor.memory)
        if executor.one_machine and (gpus := hardware_here()):
            check_gpus(recipe, plan, gpus)
    except MachineError as error:
        if not anyway:
            raise
        click.echo(f"warning: {error}", err=True)


def summary(folder: Path, outcome: Outcome) -> list[str]:
    """The last lines of a run: what was measured, and where everything lies."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = {}
    lines = [""]
    for suite, figures in (results.get("acceptance") or {}).items():
        if figures.get("acceptance_length") is not None:
            lines.append(
                f"acceptance length   {figures['acceptance_length']:.3f} on {suite} "
                f"(temperature {figures.get('temperature', 0):g}, {figures.get('prompts', '?')} prompts)"
            )
    benchmark = results.get("benchmark") or {}
    for variant, figures in benchmark.items():
        if figures.get("output_tokens_per_second") is not None:
            lines.append(f"output tokens/s     {figures['output_tokens_per_second']:.2f} {variant}")
    if results.get("speedup"):
        lines.append(f"speed-up            {results['speedup']:.2f}x")
    for gate in outcome.gates:
        value = "not measured" if gate.value is None else f"{gate.value:.4g}"
        lines.append(f"gate {'passed' if gate.passed else 'MISSED'}         {gate.text} (found {value})")
    if results.get("checkpoint"):
        lines.append(f"checkpoint          {results['checkpoint']}")
    written = [name for name in ("report.html", "results.json") if (folder / name).is_file()]
    lines.extend(f"{name.partition('.')[0]:<19} {_near(folder / name)}" for name in written)
    kept = "; finished work is kept, the same command goes on" if outcome.status == "interrupted" else ""
    lines.append(f"{outcome.status.replace('_', ' ')} after {time_text(results.get('seconds') or 0.0)}{kept}")
    return lines


def _near(path: Path) -> Path:
    """The path as seen from here, when that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
