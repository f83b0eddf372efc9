"""What a step is: a pure function from its part of the recipe and its input artifacts to one artifact.

A step module under `steps/` builds one `Step` (or several variants) and imports torch and the other heavy libraries
only inside `run`, so that planning stays instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class View(Protocol):
    """The declared recipe paths, read as attributes (`config.train.epochs`); any other path raises `AttributeError`."""

    def __getattr__(self, name: str) -> Any: ...


class Reporter(Protocol):
    """Where a running step tells how it gets on; each call is one line of `events.jsonl`."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """`done` of `total` units are finished; the rate is worked out by the reader."""

    def metric(self, at: int, values: Mapping[str, float]) -> None:
        """Named figures at optimizer step, prompt or level `at`."""

    def message(self, text: str) -> None:
        """One plain sentence for the user."""


@dataclass(frozen=True)
class Nodes:
    """The machines that work on a step together, this one's number among them, and where those that train meet."""

    count: int = 1
    number: int = 0
    rendezvous: str = ""
    """`host:port` of the first one."""


ONE_NODE = Nodes()


@dataclass(frozen=True)
class Context:
    """All that a running step can see.

    `output` is the step's own directory. It survives a crash and is found again by the next attempt with the same key,
    so a long step looks there first for what it had finished. What is left in it when `run` returns is the artifact;
    the step removes its scratch files itself.
    """

    config: View
    inputs: Mapping[str, Path]
    output: Path
    report: Reporter
    trust_remote_code: bool = False
    engine_arguments: tuple[str, ...] = ()
    """Further arguments for an engine that is a program of its own; they come from the command line only."""
    processes: int = 1
    """That train together, each on a GPU of its own; from the command line only, and in no key."""
    sharding: str = "none"
    """`full`: the draft, its gradients and moments are divided among them."""
    nodes: Nodes = ONE_NODE
    lock: Path = Path()
    """The artifact's lock; locks of parts of the work on it have names that begin with its name."""
    recipe_name: str = ""
    run_folder: Path = Path()
    """The recipe's name and the run's folder are there to tell how the step gets on; no artifact depends on them."""


@dataclass(frozen=True)
class Estimate:
    """What a step will cost: bytes on disk, peak bytes of memory, seconds. None: unknown."""

    disk: int | None = None
    memory: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Scope:
    """What an estimate may use: the step's view, and facts about the verifier and the data gathered while planning."""

    config: View
    facts: Mapping[str, float] = field(default_factory=dict)


def no_estimate(scope: Scope) -> Estimate:
    """For steps that cost next to nothing."""
    return Estimate(disk=0, memory=0, seconds=1.0)


def no_external(config: View) -> Mapping[str, str]:
    """For steps that read nothing but their recipe paths and inputs."""
    return {}


def stays_nowhere(config: View) -> bool:
    """For steps whose artifacts mean the same on every machine."""
    return False


def no_needs(config: View) -> None:
    """For steps that need nothing which the installation may lack."""


@dataclass(frozen=True)
class Step:
    """A node of the graph.

    `reads` are dotted recipe paths; the step's view shows exactly those (and all below them). `inputs` are names of
    other steps. `external` returns the digests of everything outside recipe and store that the output depends on (a
    file's sha256, a data set's commit); it is called while planning, must not import torch, and is called again after
    the step. Several steps may come from one module (`benchmark-dense`, `benchmark-speculator`).
    """

    name: str
    version: int
    reads: tuple[str, ...]
    run: Callable[[Context], None]
    inputs: tuple[str, ...] = ()
    restated: tuple[str, ...] = ()
    """Those of `reads` whose meaning for this step `external` says: they do not enter the key themselves."""
    external: Callable[[View], Mapping[str, str]] = no_external
    estimate: Callable[[Scope], Estimate] = no_estimate
    needs: Callable[[View], None] = no_needs
    """Raises MachineError when what the step needs is not installed; asked before a run begins, without imports."""
    stays: Callable[[View], bool] = stays_nowhere
    """True: its artifact means something on this machine only, so that no remote store is asked for it, or given it."""
    cached: bool = True
    machine_bound: bool = False
    """True: the machine class and engine versions enter the key (benchmarks)."""
    light: bool = False
    """True: takes little of the machine, so it may run beside another step; all others run one at a time."""
    spans_nodes: bool = False
    """True: machines other than the first take part in it, and leave publishing to that one."""
    uses_gpu: bool = True
    """False: a GPU is of no use to it, so on a cluster none is asked for."""
    releases: tuple[str, ...] = ()
    """Inputs that go to the trash once this step is published, if nothing else in the run needs them."""
    spares_disk: str = ""
    """What to do when the disk does not suffice for what this step would write; a clause of a message."""
