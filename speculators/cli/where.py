"""Where a run's steps run: the options, and the way from them to an executor."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click
from click.core import ParameterSource

from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.cli.asked import Asked
    from speculators.pipeline.executors.base import Executor
    from speculators.pipeline.executors.requests import Requests

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FOR = {
    **dict.fromkeys(("gpus", "cpus", "memory"), ("slurm", "ray")),
    **dict.fromkeys(("time", "partition", "account", "slurm_arg"), ("slurm",)),
    **dict.fromkeys(("ray_address", "no_shared_disk"), ("ray",)),
}
"""The executors for which each option is."""

WHERE = ["--executor", *(f"--{name.replace('_', '-')}" for name in _FOR)]
"""The options, as they are shown together."""


@dataclass(frozen=True)
class Where:
    """What the command line and the environment say about it."""

    executor: str
    gpus: tuple[str, ...]
    cpus: tuple[str, ...]
    memory: tuple[str, ...]
    time: tuple[str, ...]
    partition: tuple[str, ...]
    account: str | None
    slurm_arg: tuple[str, ...]
    ray_address: str | None
    no_shared_disk: bool

    @property
    def apart(self) -> bool:
        """Whether steps run on machines that share no disk with this one."""
        return self.executor == "ray" and self.no_shared_disk

    @property
    def requests(self) -> Requests:
        """What steps ask for; raises UsageError for what makes no sense."""
        from speculators.pipeline.executors.requests import Requests

        names = ("gpus", "cpus", "memory", "time", "partition")
        return Requests.parse({name: getattr(self, name) for name in names if self.executor in _FOR[name]})

    def check(self, steps: Collection[str], asked: Asked) -> None:
        """Raise UsageError for a step that the recipe does not have, more processes than GPUs, and nodes that cannot
        be brought together.
        """
        nodes, processes = asked.nodes, asked.processes
        if nodes > 1 and self.executor == "slurm":
            raise UsageError(f"--nodes {nodes} is for --executor local, with the same command on each machine, or ray")
        if nodes > 1 and self.apart:
            raise UsageError(f"--nodes {nodes}: what machines do together lies on a disk that they share")
        requests = self.requests
        requests.check(steps)
        gpus = requests.of("train", uses_gpu=True).gpus
        if gpus and processes > gpus:
            raise UsageError(
                f"--processes {processes} needs as many GPUs, and {gpus} are asked for; add --gpus train={processes}"
            )

    def open(self, store: Path, runs: Path, grace: float, tell: Callable[[str], None], remote: str | None) -> Executor:
        """The executor; raises MachineError where its package or cluster is missing, or a disk is not shared.

        `remote` is the URL of the remote store, if one is used; UsageError where machines have nothing else in common.
        """
        if self.executor == "slurm":
            from speculators.pipeline.executors.slurm import Site, SlurmExecutor

            site = Site(self.account, dict(_slurm_argument(text) for text in self.slurm_arg))
            return SlurmExecutor(self.requests, store, runs, grace=grace, site=site, tell=tell)
        if self.executor == "ray":
            from speculators.pipeline.executors.ray import RayExecutor

            if self.apart and not remote:
                raise UsageError("--no-shared-disk needs --remote URL, a store that all machines reach")
            common = remote if self.apart else None
            return RayExecutor(self.requests, store, runs, address=self.ray_address, grace=grace, remote=common)
        from speculators.pipeline.executors.local import LocalExecutor

        return LocalExecutor(grace)


def where_options(command: _Command) -> _Command:
    """The executor, and what steps ask of it."""
    for decorate in reversed(
        (
            click.option(
                "--executor",
                type=click.Choice(["local", "slurm", "ray"]),
                default="local",
                show_default=True,
                help="Here, or each step as a job of Slurm or as a task of a Ray cluster.",
            ),
            click.option(
                "--gpus",
                multiple=True,
                metavar="[STEP=]N",
                help="GPUs for each step that uses them, or for one: --gpus 1 --gpus train=8.",
            ),
            click.option("--cpus", multiple=True, metavar="[STEP=]N", help="Processor cores."),
            click.option("--memory", multiple=True, metavar="[STEP=]SIZE", help="Memory, such as 64GB."),
            click.option(
                "--time",
                multiple=True,
                metavar="[STEP=]TIME",
                help="A Slurm job's time, such as 90m or 1d; a step goes on in the next job.  [default: 4h]",
            ),
            click.option("--partition", multiple=True, metavar="[STEP=]NAME", help="Slurm's partition."),
            click.option("--account", metavar="NAME", help="The Slurm account that pays."),
            click.option(
                "--slurm-arg",
                multiple=True,
                metavar="ARGUMENT",
                help="For sbatch, such as --slurm-arg=--constraint=h100.",
            ),
            click.option(
                "--ray-address", metavar="HOST:PORT", help="The Ray cluster's head.  [default: $RAY_ADDRESS, else ours]"
            ),
            click.option(
                "--no-shared-disk",
                is_flag=True,
                help="Ray's nodes share no disk: what steps read and make goes through --remote.",
            ),
        )
    ):
        command = decorate(command)
    return command


def where(context: click.Context, options: dict[str, Any]) -> Where:
    """Take the options of `where_options` out of `options`; raises UsageError for those that do not go together.

    What the environment sets for another executor than the chosen one is left aside.
    """
    found = Where(**{name: options.pop(name) for name in ("executor", *_FOR)})
    for name, executors in _FOR.items():
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and found.executor not in executors:
            raise UsageError(f"--{name.replace('_', '-')} is for --executor {' or '.join(executors)}")
    if found.executor != "local" and context.meta.get("processes") == "auto":
        raise UsageError("--processes auto counts this machine's GPUs; write a number for --executor " + found.executor)
    return found


def _slurm_argument(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.removeprefix("--").partition("=")
    if not text.startswith("--") or not name:
        raise UsageError(f"--slurm-arg={text}: an option of sbatch is expected, such as --slurm-arg=--constraint=h100")
    return name, value if equals else True
