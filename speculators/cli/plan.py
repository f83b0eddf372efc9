"""`speculators plan RECIPE`: what a run would do and why, without doing it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from speculators.amounts import age_text, size_text, time_text
from speculators.cli.asked import Asked, consent, planned, recipe_options, remote_store
from speculators.errors import LockError, MachineError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from speculators.pipeline.plan import Plan, Planned
    from speculators.recipe.shapes.recipe import Recipe

_PROGRAM_BYTES = 100_000_000


@click.command("plan")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON, with everything that is hashed.")
@click.option("--mermaid", is_flag=True, help="The plan as a Mermaid graph.")
@click.option("--on", metavar="GPUS", help="Estimates for other GPUs than this machine's, such as --on '8x H100'.")
@click.option("--check", is_flag=True, help="Exit with 4 when there is something to run.")
@click.option("--check-engine", is_flag=True, help="Start vLLM on the draft to be trained, with random weights.")
def command(as_json: bool, mermaid: bool, on: str | None, check: bool, check_engine: bool, **options: Any) -> None:
    """Show what a run of RECIPE would do, and why.

    RECIPE is a file, or the name of a recipe that came with speculators.
    """
    from speculators.pipeline.hardware import hardware_here, parse_hardware
    from speculators.pipeline.plan import check_machine
    from speculators.steps.fits import check_gpus

    asked = Asked(**options)
    hardware = parse_hardware(on) if on else None
    loaded, plan = planned(asked, hardware=hardware, remote=remote_store(asked))
    if as_json:
        from speculators.pipeline.folder import plan_json

        click.echo(json.dumps(plan_json(plan, "", consent(asked)), indent=1))
    elif mermaid:
        click.echo(mermaid_text(plan))
    else:
        show(plan, asked.recipe)
        try:
            if hardware is None:
                check_machine(plan)
            if gpus := hardware or hardware_here():
                check_gpus(loaded.recipe, plan, gpus)
        except MachineError as error:
            click.echo(f"\n  error: {error}")
    if check_engine:
        _check_engine(loaded.recipe, plan, asked.engine_arguments)
    if check and plan.to_run:
        raise LockError(f"{len(plan.to_run)} steps would run: {', '.join(step.name for step in plan.to_run)}")


def _check_engine(recipe: Recipe, plan: Plan, arguments: tuple[str, ...]) -> None:
    """Serve the untrained draft; raises UsageError when the verifier is not on this machine yet."""
    from tempfile import TemporaryDirectory

    artifact = plan["verifier"].artifact
    if artifact is None:
        raise UsageError("--check-engine needs the verifier; `speculators run RECIPE --until verifier` fetches it")
    from speculators.engines.vllm.preflight import serve_untrained
    from speculators.engines.vllm.server import ServerOptions, server_options
    from speculators.recipe.shapes.verifier import VllmEngine
    from speculators.verifiers.source import verifier_directory

    engine = recipe.verifier.engine
    options = server_options(engine, arguments) if isinstance(engine, VllmEngine) else ServerOptions()
    with TemporaryDirectory(prefix="speculators-") as folder:
        serve_untrained(recipe, verifier_directory(artifact.path), replace(options, replicas=1), Path(folder))
    click.echo("  vLLM serves this draft: an untrained one loaded, and drafted", err=True)


def show(plan: Plan, recipe: str) -> None:
    """Print the plan as a table, with the machine's free disk above and the sums below."""
    from rich.console import Console

    from speculators.pipeline.machine import free_disk

    console = Console(highlight=False)
    free = size_text(free_disk(plan.store.root))
    remote = f"   remote: {plan.remote}" if plan.remote else ""
    console.print(
        f"\n[bold]{plan.assembly.name}[/]   {recipe}   store: {plan.store.root} ({free} free){remote}\n", soft_wrap=True
    )
    console.print(table(plan))
    known = [step.estimate.seconds for step in plan.to_run]
    fetched = plan.to_fetch
    if fetched:
        size = size_text(sum(offer.size for offer in fetched.values()))
        console.print(f"\n  a run fetches {', '.join(fetched)} from the remote store: {size}", soft_wrap=True)
    if not plan.to_run:
        console.print(f"\n  nothing to run: everything is in the store{' or the remote one' if plan.remote else ''}")
        return
    seconds = time_text(sum(second for second in known if second is not None))
    disk = size_text(sum(step.estimate.disk or 0 for step in plan.to_run))
    open_ends = " and what is unknown" if None in known else ""
    console.print(f"\n  {len(plan.to_run)} steps to run: about {seconds}{open_ends}, {disk} of disk")
    console.print("  times are from this store's earlier runs, else from a model of the hardware", style="dim")


def table(plan: Plan) -> Table:
    """One line a step: state, reason, disk, peak memory and time."""
    from rich.table import Table

    found = Table(box=None, padding=(0, 2), header_style="dim", pad_edge=True)
    found.add_column("step", no_wrap=True)
    for name in ("state", "why"):
        found.add_column(name, overflow="fold")
    for name in ("disk", "memory", "time"):
        found.add_column(name, justify="right", no_wrap=True)
    for step in plan.steps:
        style = {"run": "yellow", "cached": "green", "remote": "green", "skipped": "dim"}[step.state]
        found.add_row(
            step.name,
            f"[{style}]{step.state}[/]",
            _why(step),
            _disk_text(step),
            _memory_text(step),
            time_text(step.estimate.seconds),
        )
    return found


def _disk_text(planned: Planned) -> str:
    if planned.state == "run":
        return size_text(planned.estimate.disk)
    return size_text(planned.offer.size) if planned.offer and planned.wanted_here else ""


def _memory_text(planned: Planned) -> str:
    """Empty where it is no more than any program takes."""
    memory = planned.estimate.memory or 0
    return size_text(memory) if planned.state == "run" and memory > _PROGRAM_BYTES else ""


def _why(planned: Planned) -> str:
    from datetime import datetime

    from rich.markup import escape

    if planned.why is not None:
        return escape(planned.why.text)
    manifest = planned.artifact.manifest if planned.artifact else planned.offer
    if manifest is None:
        return "[dim]nothing needs it[/]"
    finished = datetime.fromisoformat(manifest.finished.replace("Z", "+00:00"))
    return f"[dim]{age_text(time.time() - finished.timestamp())}[/]"


def mermaid_text(plan: Plan) -> str:
    """The graph for a Markdown page."""
    lines = ["graph LR"]
    for step in plan.steps:
        lines.append(f'  {step.name}["{step.name}<br/>{step.state}"]:::{step.state}')
        lines.extend(f"  {source} --> {step.name}" for source in step.step.inputs)
    lines += [
        "  classDef run fill:#fff3cd,stroke:#b58105",
        "  classDef cached fill:#d9f2e3,stroke:#2f855a",
        "  classDef remote fill:#d9f2e3,stroke:#2f855a,stroke-dasharray:4",
        "  classDef skipped fill:#eeeeee,stroke:#999999",
    ]
    return "\n".join(lines)
