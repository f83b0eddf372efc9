"""Runs a plan: steps as processes, as many at once as get on together, and an account of everything that happened."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from speculators.errors import (
    INTERRUPTED,
    GateMissed,
    MachineError,
    RecipeError,
    SpeculatorsError,
    StepError,
    UsageError,
)
from speculators.pipeline.assembly import Gate
from speculators.pipeline.carry import carry_over
from speculators.pipeline.events import Event, EventTail
from speculators.pipeline.executors.base import Caller, Executor, Work, explain
from speculators.pipeline.folder import OFFLINE, RunFolder, read_plan, write_plan_again
from speculators.pipeline.plan import Plan, Planned, check_machine
from speculators.pipeline.reasons import Reason
from speculators.pipeline.remote import Remote, Stopped
from speculators.pipeline.store import Artifact, instances
from speculators.pipeline.transfers import Pushes, bring_back, fetch, hand_over

_T = TypeVar("_T")

Status = Literal["finished", "failed", "gate_missed", "interrupted"]
Listener = Callable[[Event], None]

_TICK_SECONDS = 0.1
_LAST_LINES = 20
_UNSEEN_SECONDS = 60.0  # as long as NFS by default believes that a file is not there


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Status
    exit_code: int
    failures: tuple[SpeculatorsError, ...] = ()
    gates: tuple[Gate, ...] = ()


def silent(event: Event) -> None:
    """Listen to nothing."""


def run_plan(
    plan: Plan,
    folder: RunFolder,
    executor: Executor,
    *,
    listener: Listener = silent,
    previous: Path | None = None,
    push_to: Remote | None = None,
    check: Callable[[Plan], None] = check_machine,
) -> Outcome:
    """Do what the plan says; never raises for a step that fails, for a missed gate or an interruption.

    `listener` is called in this thread with every event. `previous` is an earlier run whose report may be copied.
    What the run has made or found here is copied to `push_to`. When the plan's remote store turns out to be damaged
    there is more to run than was planned; `check` then raises MachineError if this machine cannot.
    """
    return _Run(plan, folder, executor, listener, previous, push_to, check).run()


@dataclass
class _Run:
    plan: Plan
    folder: RunFolder
    executor: Executor
    listener: Listener
    previous: Path | None
    push_to: Remote | None
    check: Callable[[Plan], None]
    failures: list[SpeculatorsError] = field(default_factory=list)
    started: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    checked: bool = False
    wrong: bool = False
    interruptions: int = 0

    def run(self) -> Outcome:
        self.tail = EventTail(self.folder.events_file)
        self.events = self.folder.events
        self.artifacts: dict[str, Path] = {}
        self.elsewhere: set[str] = set()  # in the remote store only
        self.given: set[str] = set()  # to it, for steps on other machines
        clock = time.monotonic()
        self.pushes = Pushes(self.push_to, self.plan, self.events, self._is_ending)
        gates: tuple[Gate, ...] = ()
        with self._interruptions_noted():
            self._begin()
            self._work([planned for planned in self.plan.steps if planned.state == "run" and planned.step.cached])
            if not self.interruptions:
                gates = self._judge()
                self._close(
                    [planned for planned in self.plan.steps if planned.state == "run" and not planned.step.cached]
                )
            self._beside(self.pushes.finish)
            outcome = self._outcome(gates)
            self.events.write("run_finished", status=outcome.status, seconds=round(time.monotonic() - clock, 3))
            self._listen()
            with contextlib.suppress(SpeculatorsError):
                self.plan.assembly.results(self.folder.path)
        return outcome

    def _begin(self) -> None:
        self.events.write("run_started", name=self.plan.assembly.name, folder=self.folder.path, pid=os.getpid())
        self._tell_plan()
        self._fetch()
        for name, artifact in self.plan.artifacts.items():
            self.plan.store.touch(artifact)
            self._have(name, artifact)
            self.events.write("step_cached", step=name, artifact=artifact.path.name)
        self.elsewhere.update(planned.name for planned in self.plan.steps if planned.state == "remote")
        for planned in self.plan.steps:
            if planned.why is not None and planned.why.reason is Reason.DAMAGED:
                self.events.write("message", step=planned.name, text=f"{planned.id} is {planned.why.text}")
        self._listen()

    def _tell_plan(self) -> None:
        self.events.write(
            "planned",
            steps=[
                {
                    "name": planned.name,
                    "state": planned.state,
                    "why": planned.why.text if planned.why else None,
                    "seconds": planned.estimate.seconds,
                }
                for planned in self.plan.steps
            ],
        )

    def _fetch(self) -> None:
        """Bring here what the plan takes from the remote store; what is damaged there is planned to be made instead."""
        try:
            while self.plan.to_fetch and not self.interruptions:
                self._beside(lambda: fetch(self.plan, self.folder, self._is_ending))
                before, self.plan = self.plan.to_run, self.plan.again()
                write_plan_again(self.folder, self.plan)
                self._tell_plan()
                if {planned.name for planned in self.plan.to_run} - {planned.name for planned in before}:
                    self.check(self.plan)
        except Stopped:
            return
        except SpeculatorsError as error:
            self._refuse(error)

    def _refuse(self, error: SpeculatorsError) -> None:
        """Let nothing more start."""
        self.failures.append(error)
        self.checked = self.wrong = True
        self.events.write("message", text=str(error))

    def _have(self, name: str, artifact: Artifact) -> None:
        self.artifacts[name] = artifact.path
        self.folder.link(name, artifact.path)
        self.pushes.add(name, artifact)

    def _work(self, steps: list[Planned]) -> None:
        """Run the steps in the order of their needs, until all are done or nothing more can start."""
        running: dict[Future[int], Planned] = {}
        waiting = list(steps)
        with ThreadPoolExecutor(max_workers=max(1, len(steps))) as threads, self._stopping_on_errors():
            while True:
                if not self.interruptions and self._still_right():
                    for planned in list(waiting):
                        if self._may_start(planned, running.values()):
                            waiting.remove(planned)
                            self.started.add(planned.name)
                            running[threads.submit(self._do, planned)] = planned
                if not running:
                    break
                done, _ = wait(running, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
                self._listen()
                for future in done:
                    self._ended(running.pop(future), future.result())
                self._listen()

    def _may_start(self, planned: Planned, beside: Collection[Planned]) -> bool:
        if any(name not in self.artifacts and name not in self.elsewhere for name in planned.step.inputs):
            return False
        return planned.step.light or not self.executor.one_machine or all(other.step.light for other in beside)

    def _still_right(self) -> bool:
        """Check the recipe against what is known by now; nothing more starts once it was found wrong."""
        if not self.checked:
            try:
                self.checked = self.plan.assembly.check(self.artifacts)
            except SpeculatorsError as error:
                self._refuse(error)
        return not self.wrong

    def _do(self, planned: Planned) -> int:
        """Run one step to its end, in a thread of its own; the exit status."""

        def tell(text: str) -> None:
            self.events.write("message", step=planned.name, text=text)

        work = self._command(planned)
        try:
            if self.plan.apart and planned.step.cached:
                self.given.update(hand_over(self.plan, planned, self.folder, self._is_ending))
            status = self.executor.run(work, Caller(tell, lambda: self._taken(planned)))
            if status == 0 and planned.step.cached and not self._published(planned):
                where = self.plan.remote if self.plan.apart else self.plan.store.root
                explain(work.log, f"the step ended well, but {planned.id} is not in the store {where}")
                return 1
        except Stopped:
            return INTERRUPTED
        except SpeculatorsError as error:
            explain(work.log, str(error))
            return error.exit_code
        return status

    def _is_ending(self) -> bool:
        return self.interruptions > 0

    def _published(self, planned: Planned) -> bool:
        """Whether the artifact is there; another machine's work may take some seconds to be seen on a network disk."""
        if self.plan.apart:
            return bring_back(self.plan, planned, self.folder, self._is_ending)
        deadline = time.monotonic() + (0 if self.executor.one_machine else _UNSEEN_SECONDS)
        while not isinstance(self.plan.store.find(planned.name, planned.key), Artifact):
            if time.monotonic() >= deadline or self.interruptions:
                return False
            os.listdir(self.plan.store.artifacts)  # noqa: PTH208  opening the folder makes NFS look again
            time.sleep(_TICK_SECONDS)
        return True

    def _taken(self, planned: Planned) -> bool:
        """Take the artifact that somebody else has made meanwhile, if it is there."""
        inputs = {name: self.plan.store.find(name, self.plan[name].key) for name in planned.step.inputs}
        present = {name: artifact for name, artifact in inputs.items() if isinstance(artifact, Artifact)}
        if not self.plan.store.serving(planned.name, planned.key, planned.replaces, instances(present)):
            return False
        self.events.write("step_cached", step=planned.name, artifact=planned.id)
        return True

    def _command(self, planned: Planned) -> Work:
        argv = (sys.executable, "-m", "speculators.pipeline.work", str(self.folder.path), planned.name)
        environment = {"PYTHONUNBUFFERED": "1"}
        if read_plan(self.folder.path)["offline"]:
            environment.update(OFFLINE)
        return Work(
            planned.name,
            argv,
            self.folder.log(planned.name),
            environment,
            artifact=planned.id if planned.step.cached else None,
            uses_gpu=planned.step.uses_gpu,
            machine=planned.hashed.get("machine"),
            nodes=read_plan(self.folder.path)["nodes"]["count"] if planned.step.spans_nodes else 1,
        )

    def _ended(self, planned: Planned, status: int) -> None:
        if status == 0:
            self.finished.add(planned.name)
            found = self.plan.store.find(planned.name, planned.key) if planned.step.cached else None
            if isinstance(found, Artifact):
                self._have(planned.name, found)
            elif planned.step.cached:
                self.elsewhere.add(planned.name)
            self._release(planned)
            return
        if self.interruptions:
            return
        log = self.folder.log(planned.name)
        lines = _last_lines(log)
        error = _said(status, lines)
        self.events.write("step_failed", step=planned.name, error=error, exit_status=status, log=log)
        kind = {MachineError.exit_code: MachineError, RecipeError.exit_code: StepError}.get(status, StepError)
        # A mistake of the user's is explained by its message alone; the traceback stays in the log.
        shown = error if status == UsageError.exit_code else f"{error}\n\n{lines}"
        text = f"{planned.name} failed: {shown}\n\nits whole output: {log}"
        if kind is MachineError:
            self.failures.append(MachineError(text))
        else:
            self.failures.append(StepError(text, step=planned.name, log=log, last_lines=lines))

    def _release(self, planned: Planned) -> None:
        """Let go of the inputs that the step does not want kept, unless another step of this run still needs them."""
        for name in planned.step.releases:
            others = (other for other in self.plan.to_run if name in other.step.inputs)
            if any(other.name not in self.finished for other in others):
                continue
            if self.plan.apart and name in self.given | self.finished:  # others' stay
                self._release_elsewhere(planned, name)
            artifact = self.artifacts.get(name)
            if artifact is None:
                continue
            with self.plan.store.try_hold(artifact.name) as held:
                if held and artifact.exists():
                    self.plan.store.discard(artifact.name)
                    self.folder.unlink(name)
                    self.events.write("message", step=planned.name, text=f"{name} is no longer needed and was removed")

    def _release_elsewhere(self, planned: Planned, name: str) -> None:
        assert self.plan.remote is not None  # noqa: S101  machines have it in common
        try:
            self.plan.remote.discard(self.plan[name].id)
            text = f"{name} is no longer needed and was removed from {self.plan.remote}"
        except MachineError as error:
            text = str(error)
        self.events.write("message", step=planned.name, text=text)

    def _judge(self) -> tuple[Gate, ...]:
        """Judge the gates, unless a step failed: what was not measured is not missed."""
        if self.failures:
            return ()
        gates = self.plan.assembly.gates(self.folder.path)
        for gate in gates:
            self.events.write("gate", gate=gate.text, value=gate.value, passed=gate.passed)
        return gates

    def _close(self, steps: list[Planned]) -> None:
        """The report and its like: last, and whatever happened before, as long as there is something to tell."""
        for planned in steps:
            if self.interruptions or not self.artifacts:
                return
            plan = read_plan(self.folder.path)
            if not self.started and self.previous and carry_over(self.previous, self.folder.path, planned.step, plan):
                self.events.write("step_cached", step=planned.name, artifact=None)
                continue
            self._ended(planned, self._beside(partial(self._do, planned)))

    def _beside(self, do: Callable[[], _T]) -> _T:
        """Do it in another thread, while this one goes on listening; its result."""
        with ThreadPoolExecutor(max_workers=1) as thread, self._stopping_on_errors():
            future = thread.submit(do)
            while not future.done():
                wait([future], timeout=_TICK_SECONDS)
                self._listen()
        return future.result()

    def _outcome(self, gates: tuple[Gate, ...]) -> Outcome:
        if self.interruptions:
            return Outcome("interrupted", INTERRUPTED, tuple(self.failures), gates)
        if self.failures:
            return Outcome("failed", self.failures[0].exit_code, tuple(self.failures), gates)
        missed = [gate for gate in gates if not gate.passed]
        if missed:
            return Outcome("gate_missed", GateMissed.exit_code, (GateMissed(_missed(missed)),), gates)
        return Outcome("finished", 0, (), gates)

    def _listen(self) -> None:
        for event in self.tail.read():
            self.listener(event)

    @contextlib.contextmanager
    def _stopping_on_errors(self) -> Iterator[None]:
        """End the steps when the runner itself fails, for instance because nobody reads its output any more."""
        try:
            yield
        except BaseException:
            self.interruptions += 1  # so that pushes end as well
            self.executor.stop()
            raise

    @contextlib.contextmanager
    def _interruptions_noted(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the steps and then the run; a second one kills them at once."""

        def interrupt(number: int, frame: object) -> None:
            self.interruptions += 1
            if self.interruptions == 1:
                self.executor.stop()
            else:
                self.executor.kill()

        try:
            before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs us there handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LAST_LINES:])


def _said(status: int, lines: str) -> str:
    """What went wrong: the last paragraph of the log, as the worker writes it, else the last line."""
    if status < 0:
        try:
            return f"it was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"it was ended by signal {-status}"
    last = lines.strip().rpartition("\n\n")[2] if "\n\n" in lines else lines.strip().rpartition("\n")[2]
    return last or f"it ended with status {status} and said nothing"


def _missed(gates: list[Gate]) -> str:
    values: Mapping[str, str] = {
        gate.text: "not measured" if gate.value is None else f"{gate.value:.4g}" for gate in gates
    }
    return "\n".join(f"gate missed: {text} (found {value})" for text, value in values.items())
