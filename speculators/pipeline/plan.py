"""The plan: every step's key, which artifacts serve, what must run and why, and what that will cost.

Keys are worked out forwards, from recipe, versions and digests alone; nothing runs for that. What must run is worked
out backwards from the targets: when `train` is cached, the hidden states it was trained on need not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from speculators.amounts import size_text
from speculators.errors import MachineError, UsageError
from speculators.pipeline.assembly import Assembly
from speculators.pipeline.digests import remembering, value_sha256
from speculators.pipeline.machine import free_disk, machine_class, machine_key, own_memory
from speculators.pipeline.manifest import Manifest, artifact_id, folder_name
from speculators.pipeline.offers import fitting
from speculators.pipeline.reasons import Reason, Why, why_missing
from speculators.pipeline.remote import Remote
from speculators.pipeline.step import Estimate, Scope, Step
from speculators.pipeline.store import Artifact, Damaged, Store, made_from

State = Literal["cached", "remote", "run", "skipped"]
"""`remote`: in the remote store only. `skipped`: not there, and nothing that must run needs it."""

Machine = Callable[[Step], Mapping[str, Any]]
"""The machine and versions with which a step would run."""


@dataclass(frozen=True)
class Selection:
    """What the user asked for; empty: everything.

    `only`: these steps and no other; what they need must be there. `until`: these and what they need. `start` (the
    option `--from`): these and what depends on them. `force`: run these although they are cached.
    """

    only: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    force: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A step of the plan: its key, the object hashed for it, what becomes of it and why."""

    step: Step
    key: str
    hashed: dict[str, Any]
    state: State
    why: Why | None = None
    artifact: Artifact | None = None
    """The artifact that serves, for cached steps."""
    replaces: str | None = None
    """The run that made the artifact which is not to serve although its key is right (forced)."""
    offer: Manifest | None = None
    """What the remote store has, in the state `remote`."""
    wanted_here: bool = False
    """Whether it is to be here in the end: a step that runs here reads it, or it is what was asked for."""
    estimate: Estimate = field(default_factory=Estimate)
    model_seconds: float | None = None
    """What the step's own model of time says, before earlier runs correct it."""

    @property
    def name(self) -> str:
        """The step's name."""
        return self.step.name

    @property
    def id(self) -> str:
        """The artifact's name."""
        return artifact_id(self.step.name, self.key)


@dataclass(frozen=True)
class Plan:
    """The steps in order, and where."""

    assembly: Assembly
    store: Store
    steps: tuple[Planned, ...]
    remote: Remote | None
    again: Callable[[], Plan]
    """Makes the same plan with what is there by then."""
    apart: bool = False
    """Whether steps run on machines that share no disk with this one: what they read and make is in `remote`."""

    def __getitem__(self, name: str) -> Planned:
        return next(planned for planned in self.steps if planned.name == name)

    @property
    def to_run(self) -> tuple[Planned, ...]:
        """The steps with work to do; the report, which is never cached, is not work."""
        return tuple(planned for planned in self.steps if planned.state == "run" and planned.step.cached)

    @property
    def to_fetch(self) -> dict[str, Manifest]:
        """What a run brings here from the remote store before its steps start, by step."""
        return {planned.name: planned.offer for planned in self.steps if planned.offer and planned.wanted_here}

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts that exist and serve, by step."""
        return {planned.name: planned.artifact for planned in self.steps if planned.artifact is not None}

    def stays(self, planned: Planned) -> bool:
        """Whether what the step makes means something on one machine only."""
        return planned.step.stays(self.assembly.view(planned.step.reads))


_TELLING_SECONDS = 60.0
UNRESOLVED = "not resolved"
"""The digest, in a plan that is only looked at, of what this machine cannot reach."""


def make_plan(
    assembly: Assembly,
    store: Store,
    selection: Selection | None = None,
    *,
    machine: Machine | None = None,
    only_looked_at: bool = False,
    remote: Remote | None = None,
    apart: bool = False,
) -> Plan:
    """Plan the selected steps; `machine` says where a step that is bound to its machine would run (None: here).

    A plan that is `only_looked_at` is made without what this machine cannot reach: for another machine, its sizes are
    right and its keys are not. What the store lacks may be in the `remote` one, whose manifests alone are read. When
    steps run `apart`, on machines with stores of their own, nothing is fetched for them to this one.

    Raises UsageError for a selection that makes no sense, RecipeError from the recipe's own checks, and whatever a
    step's `external` raises for a file or model that is not there; MachineError from a remote store out of reach.
    """
    again = partial(
        make_plan,
        assembly,
        store,
        selection,
        machine=machine,
        only_looked_at=only_looked_at,
        remote=remote,
        apart=apart,
    )
    selection = selection or Selection()
    order = ordered(assembly.steps)
    by_name = {step.name: step for step in order}
    wanted = _wanted(by_name, selection)
    hashed = _hashed(order, assembly, store, machine, only_looked_at=only_looked_at)
    keys = {name: value_sha256(value) for name, value in hashed.items()}
    found = {step.name: store.find(step.name, keys[step.name]) for step in order if step.cached}
    present = {name: artifact for name, artifact in found.items() if isinstance(artifact, Artifact)}
    here = {name: artifact.manifest for name, artifact in present.items()}
    asked = {
        step.name: keys[step.name]
        for step in order
        if step.cached and step.name not in here and step.name not in selection.force
        if not step.stays(assembly.view(step.reads))
    }
    offers, refused = fitting(order, here, remote.offers(asked) if remote else {}, selection.force)
    made = {**here, **offers}
    instances = {name: manifest.instance for name, manifest in made.items()}

    def judge(step: Step) -> Why | None:
        if not step.cached:
            return Why(Reason.NEVER_CACHED, Reason.NEVER_CACHED.value)
        if step.name in selection.force:
            return Why(Reason.FORCED, "forced")
        if step.name in made:
            stale = made_from(made[step.name], instances)
            return Why(Reason.INPUT_REBUILT, f"{stale} was rebuilt") if stale else None
        if isinstance(damage := found[step.name], Damaged):
            return Why(Reason.DAMAGED, f"damaged: {damage.why}")
        if remote is not None and (spoilt := remote.damaged.get(artifact_id(step.name, keys[step.name]))):
            return Why(Reason.DAMAGED, f"damaged in the remote store: {spoilt}")
        return refused.get(step.name) or why_missing(hashed[step.name], store.history(step.name), assembly.name)

    why = _must_run(order, wanted.targets, judge)
    if wanted.closed and (lacking := [step.name for step in order if step.name in why and step.name not in wanted.all]):
        raise UsageError(
            f"`--only {' --only '.join(selection.only)}` needs {', '.join(lacking)}, not in the store as it is needed; "
            f"`--until {selection.only[-1]}` makes that too"
        )
    paths = {name: artifact.path for name, artifact in present.items() if name not in why}
    assembly.check(paths)
    facts = assembly.facts(paths)
    host = machine_class() if machine is None else None  # an executor's machines are not known by name

    def earlier(name: str) -> list[Artifact]:
        if only_looked_at:
            return []
        return [one for one in store.history(name) if host in (None, one.manifest.host)]

    doing_here = (step for step in order if step.name in why and not (apart and step.cached))
    read = {source for step in doing_here for source in step.inputs}
    planned = []
    for step in order:
        name = step.name
        artifact = present.get(name)
        state: State = "run" if name in why else "skipped"
        if state == "skipped" and name in made and made_from(made[name], instances) is None:
            state = "cached" if artifact else "remote"
        model = step.estimate(Scope(assembly.view(step.reads), facts)) if state == "run" else Estimate()
        planned.append(
            Planned(
                step,
                keys[name],
                hashed[name],
                state,
                why.get(name),
                artifact=artifact if state == "cached" else None,
                replaces=artifact.manifest.run if artifact and name in selection.force and state == "run" else None,
                offer=offers.get(name) if state == "remote" else None,
                wanted_here=name in read | wanted.targets | {*assembly.figures},
                estimate=_corrected(model, earlier(name), assembly.name) if state == "run" else model,
                model_seconds=model.seconds,
            )
        )
    return Plan(assembly, store, tuple(planned), remote, again, apart)


def check_machine(plan: Plan, memory: Callable[[Step], int | None] | None = None) -> None:
    """Raise MachineError when a step's needs are not met, or the estimates say that disk or memory will not do; says
    which step and how to go on. `memory` says how many bytes a step can have where it runs, if it knows.
    """
    for planned in plan.to_run:
        planned.step.needs(plan.assembly.view(planned.step.reads))
    made_here = (planned for planned in plan.to_run if planned.wanted_here or not plan.apart)
    disk = {planned.name: planned.estimate.disk or 0 for planned in made_here}
    disk |= {name: offer.size for name, offer in plan.to_fetch.items()}
    free = free_disk(plan.store.root)
    if sum(disk.values()) > free:
        largest = max(disk, key=lambda name: disk[name])
        advice = plan[largest].step.spares_disk
        raise MachineError(
            f"this run needs about {size_text(sum(disk.values()))} of disk ({largest}: {size_text(disk[largest])}), "
            f"{size_text(free)} are free in {plan.store.root}; free some (`speculators cache prune`), "
            f"give another --store, or run anyway with --yes{f'; {advice}' if advice else ''}"
        )
    for planned in plan.to_run:
        total = memory(planned.step) if memory else own_memory(uses_gpu=planned.step.uses_gpu)
        if total is not None and (planned.estimate.memory or 0) > total:
            raise MachineError(
                f"{planned.name} needs about {size_text(planned.estimate.memory or 0)} of memory and can have "
                f"{size_text(total)}; make the recipe smaller, or run anyway with --yes"
            )


def ordered(steps: Collection[Step]) -> tuple[Step, ...]:
    """The steps with every input before what needs it, otherwise in the order given.

    Raises ValueError for a name given twice, an input that is no step, or a cycle: mistakes of a graph, not of a user.
    """
    by_name = {step.name: step for step in steps}
    if len(by_name) != len(steps):
        raise ValueError("two steps have the same name")
    for step in steps:
        folder_name(step.name)
        if unknown := set(step.inputs) - by_name.keys():
            raise ValueError(f"{step.name} has the inputs {sorted(unknown)}, which are no steps")
    sorter = TopologicalSorter({step.name: step.inputs for step in steps})
    position = {name: index for index, name in enumerate(by_name)}
    found: list[Step] = []
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"the steps go round in a circle: {' -> '.join(error.args[1])}") from error
    ready = sorted(sorter.get_ready(), key=position.__getitem__)
    while ready:
        name = ready.pop(0)
        found.append(by_name[name])
        sorter.done(name)
        ready = sorted([*ready, *sorter.get_ready()], key=position.__getitem__)
    return tuple(found)


@dataclass(frozen=True)
class _Wanted:
    targets: frozenset[str]
    all: frozenset[str]
    closed: bool


def _wanted(by_name: Mapping[str, Step], selection: Selection) -> _Wanted:
    """The targets: the selected steps on which no other selected step depends, and the forced ones."""
    for name in (*selection.only, *selection.start, *selection.until, *selection.force):
        if name not in by_name:
            near = get_close_matches(name, by_name, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"its steps: {', '.join(by_name)}"
            raise UsageError(f"this recipe has no step `{name}`; {hint}")
    if selection.only and (selection.start or selection.until):
        raise UsageError("--only cannot be combined with --from or --until")
    chosen = set(by_name)
    if selection.only:
        chosen = set(selection.only)
    if selection.until:
        chosen &= {name for last in selection.until for name in (last, *_ancestors(last, by_name))}
    if selection.start:
        chosen &= {name for name in by_name if {name, *_ancestors(name, by_name)} & set(selection.start)}
    if not chosen:
        raise UsageError("no step lies between --from and --until")
    if outside := set(selection.force) - chosen:
        raise UsageError(f"--force {min(outside)} is outside of the selected steps")
    inner = {source for name in chosen for source in by_name[name].inputs}
    targets = (chosen if selection.only else chosen - inner) | set(selection.force)
    return _Wanted(frozenset(targets), frozenset(chosen), bool(selection.only))


def _external(step: Step, assembly: Assembly, *, only_looked_at: bool) -> dict[str, str]:
    try:
        return dict(step.external(assembly.view(step.reads)))
    except MachineError:
        if only_looked_at:
            return {"all": UNRESOLVED}
        raise


def _hashed(
    order: tuple[Step, ...], assembly: Assembly, store: Store, machine: Machine | None, *, only_looked_at: bool
) -> dict[str, dict[str, Any]]:
    """For each step the object that is hashed into its key."""
    hashed: dict[str, dict[str, Any]] = {}
    keys: dict[str, str] = {}
    with remembering(store.digests):
        for step in order:
            value: dict[str, Any] = {
                "step": step.name,
                "version": step.version,
                "config": dict(assembly.semantic(tuple(read for read in step.reads if read not in step.restated))),
                "inputs": {name: keys[name] for name in step.inputs},
                "external": _external(step, assembly, only_looked_at=only_looked_at),
            }
            if step.machine_bound:
                value["machine"] = dict(machine(step)) if machine else machine_key()
            hashed[step.name] = value
            keys[step.name] = value_sha256(value)
    return hashed


def _ancestors(name: str, by_name: Mapping[str, Step]) -> list[str]:
    """All that a step is made from, nearest first."""
    found: dict[str, None] = {}
    queue = list(by_name[name].inputs)
    while queue:
        source = queue.pop(0)
        if source not in found:
            found[source] = None
            queue.extend(by_name[source].inputs)
    return list(found)


def _must_run(order: tuple[Step, ...], targets: frozenset[str], judge: Callable[[Step], Why | None]) -> dict[str, Why]:
    """Which steps run and why, backwards from the targets: a step that need not run does not need its inputs.

    A needed step follows when anything that it was made from is made again. Should that come out with the very same
    bytes, the worker sees it and keeps what there is.
    """
    by_name = {step.name: step for step in order}
    why: dict[str, Why] = {}
    needed: set[str] = set()
    queue = [step.name for step in order if step.name in targets]
    while queue:
        while queue:
            name = queue.pop()
            if name not in needed:
                needed.add(name)
                reason = judge(by_name[name])
                if reason is not None:
                    why[name] = reason
                    queue.extend(by_name[name].inputs)
        for name in (step.name for step in order if step.name in needed and step.name not in why):
            again = [source for source in _ancestors(name, by_name) if source in why]
            if again:
                why[name] = Why(Reason.INPUT_REBUILT, f"{again[0]} is made again")
                queue.extend(by_name[name].inputs)
    return why


def _corrected(model: Estimate, history: list[Artifact], recipe: str) -> Estimate:
    """The step's own estimate, corrected by how long the step really took before: in this recipe, else in another.

    Another recipe's work may be of quite another size, so it only serves where the model knew that size too, and where
    it took so long that starting was a small part of it.
    """
    made = [artifact.manifest for artifact in history]
    own = next((one for one in made if one.recipe == recipe), None)
    latest = own or next((one for one in made if one.seconds >= _TELLING_SECONDS), None)
    if latest is None:
        return model
    seconds = model.seconds
    if seconds is not None and latest.estimated_seconds:
        seconds = latest.seconds * seconds / latest.estimated_seconds
    elif own is not None:
        seconds = own.seconds
    return Estimate(model.disk, model.memory, seconds)
