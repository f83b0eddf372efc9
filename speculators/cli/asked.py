"""The options that `run` and `plan` share, and the way from them to a plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.pipeline.folder import Consent
    from speculators.pipeline.hardware import Hardware
    from speculators.pipeline.plan import Machine, Plan
    from speculators.pipeline.remote import Remote
    from speculators.recipe.load import Loaded
    from speculators.recipe.shapes.recipe import Recipe

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
    engine_arguments: tuple[str, ...]
    processes: int = 1
    sharding: str = "none"
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str = ""
    remote: str | None = None


def store_option(command: _Command) -> _Command:
    """`--store DIR`, for every command that looks into the store."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SPECULATORS_STORE",
        help="Where artifacts are kept. [default: the user's cache folder, or $SPECULATORS_STORE]",
    )(command)


def remote_option(command: _Command) -> _Command:
    """`--remote URL`, for every command that may look beyond the store."""
    return click.option(
        "--remote",
        metavar="URL",
        envvar="SPECULATORS_REMOTE",
        help="A store that others share, such as s3://BUCKET/PREFIX.  [default: $SPECULATORS_REMOTE, else none]",
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
            remote_option,
            click.option("--offline", is_flag=True, help="Use only what is on this machine; no network."),
            click.option(
                "--trust-remote-code",
                is_flag=True,
                help="Allow code from the verifier's repository, if the recipe asks.",
            ),
            click.option(
                "--engine-arg",
                "engine_arguments",
                multiple=True,
                metavar="ARGUMENT",
                help="A further argument for `vllm serve`, such as --engine-arg=--kv-cache-dtype=fp8. Repeatable.",
            ),
            click.option(
                "--processes",
                callback=_processes,
                default="1",
                show_default=True,
                metavar="N|auto",
                help="Processes that train together, each on its own GPU where there are GPUs; auto: one for each.",
            ),
            click.option(
                "--sharding",
                type=click.Choice(["none", "full"]),
                default="none",
                show_default=True,
                help="full: the processes divide the draft, its gradients and moments among them (FSDP2).",
            ),
            click.option(
                "--nodes",
                type=click.IntRange(min=1),
                default=1,
                show_default=True,
                help="Machines that divide answers and hidden states and train together, on one store: this command on "
                "each, or once with --executor ray.",
            ),
            click.option(
                "--node-rank",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="This one's number, from 0.",
            ),
            click.option(
                "--rendezvous",
                default="",
                metavar="HOST:PORT",
                help="Of node 0, where the processes of all nodes meet.",
            ),
        )
    ):
        command = decorate(command)
    return command


def _processes(context: click.Context, parameter: click.Parameter, value: str) -> int:
    from speculators.pipeline.machine import visible_gpus

    context.meta["processes"] = value
    if value == "auto":
        return max(1, visible_gpus())
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number from 1 nor auto")
    return int(value)


def consent(asked: Asked) -> Consent:
    """What of it is not about the recipe, but about how it is run here."""
    from speculators.pipeline.folder import Consent
    from speculators.pipeline.step import Nodes

    return Consent(
        asked.offline,
        asked.trust_remote_code,
        asked.engine_arguments,
        asked.processes,
        asked.sharding,
        Nodes(asked.nodes, asked.node_rank, asked.rendezvous),
    )


def remote_store(asked: Asked) -> Remote | None:
    """The remote store; None where none is named, or where it lies beyond the network that is not to be used."""
    from speculators.pipeline.remote import Remote, masked, needs_network

    if not asked.remote:
        return None
    if asked.offline and needs_network(asked.remote):
        click.echo(f"--offline: the remote store {masked(asked.remote)} is left out", err=True)
        return None
    return Remote.open(asked.remote)


def planned(
    asked: Asked,
    machine: Machine | None = None,
    hardware: Hardware | None = None,
    *,
    remote: Remote | None = None,
    meets_by_itself: bool = False,
    apart: bool = False,
) -> tuple[Loaded, Plan]:
    """Load the recipe and plan it; raises RecipeError, UsageError, and MachineError for a remote store out of reach.

    `machine` are the machines that an executor will use, `hardware` what is elsewhere and only planned for. An executor
    that `meets_by_itself` brings nodes together, so that they are neither numbered nor told where; steps `apart` run
    on machines that have only the remote store in common.
    """
    from speculators.pipeline.folder import OFFLINE
    from speculators.pipeline.plan import Selection, make_plan
    from speculators.pipeline.store import Store, default_store
    from speculators.recipe.load import load_recipe
    from speculators.steps import assemble

    if asked.offline:
        os.environ.update(OFFLINE)
    loaded = load_recipe(asked.recipe, asked.overlay, asked.sets, trust_remote_code=asked.trust_remote_code)
    assembly = assemble(loaded.recipe, loaded.data, loaded.origins, hardware)
    if asked.engine_arguments and loaded.recipe.verifier.engine.__struct_config__.tag != "vllm":
        raise UsageError(
            "--engine-arg is for a recipe with `verifier.engine.type: vllm`; this one's engine is embedded"
        )
    _check_processes(asked, loaded.recipe, meets_by_itself=meets_by_itself)
    # Other nodes are there for the steps up to training; the first one goes on alone.
    until = asked.until or (("train",) if asked.node_rank else ())
    selection = Selection(asked.only, asked.start, until, asked.force)
    store = Store.open(asked.store or default_store())
    if remote and asked.trust_remote_code and assembly.trusts_remote_code:
        if apart:
            raise UsageError(
                "--no-shared-disk --trust-remote-code: what comes from a remote store could name code to run"
            )
        click.echo(f"--trust-remote-code: nothing is taken from {remote}, as it could name code to run", err=True)
        remote = None
    looked_at = hardware is not None
    plan = make_plan(assembly, store, selection, machine=machine, only_looked_at=looked_at, remote=remote, apart=apart)
    return loaded, plan


def _check_processes(asked: Asked, recipe: Recipe, *, meets_by_itself: bool) -> None:
    """Raise UsageError for processes and nodes that cannot train this recipe together."""
    if meets_by_itself and (asked.node_rank or asked.rendezvous):
        raise UsageError(
            "--node-rank and --rendezvous are for --executor local; Ray's nodes are brought together by Ray"
        )
    if asked.node_rank >= asked.nodes:
        raise UsageError(f"--node-rank {asked.node_rank}: with --nodes {asked.nodes} it is from 0 to {asked.nodes - 1}")
    host, _, port = asked.rendezvous.rpartition(":")
    if asked.nodes > 1 and not meets_by_itself and not (host and port.isdecimal()):
        raise UsageError(
            f"--nodes {asked.nodes} needs --rendezvous HOST:PORT, a free port of node 0 that all nodes reach; "
            f"found {asked.rendezvous!r}"
        )
    if recipe.converts and asked.nodes > 1:
        raise UsageError(f"--nodes {asked.nodes}: this recipe converts a draft and trains none, so one machine does it")
    if recipe.converts:
        return
    together = {
        f"--processes {asked.processes}": asked.processes > 1,
        f"--nodes {asked.nodes}": asked.nodes > 1,
        f"--sharding {asked.sharding}": asked.sharding != "none",
    }
    said = next((option for option, is_said in together.items() if is_said), None)
    if said and recipe.data.hidden_states.mode == "online":
        raise UsageError(
            f"{said} needs stored hidden states; write `data.hidden_states.mode: offline`, or train in one process"
        )
    for path, optimizer in recipe.train.optimizers.items():
        if asked.sharding == "full" and optimizer.__struct_config__.tag == "adamw8bit":
            raise UsageError(f"--sharding full cannot divide the moments of adamw8bit; write `{path}.type: adamw`")
