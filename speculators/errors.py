"""Every exception a user can meet, and the exit code each one ends with.

    SpeculatorsError
    ├─ UsageError(ValueError)          exit 2   a wrong argument, name or file on the command line
    ├─ RecipeError(ValueError)         exit 2   carries every problem found in a recipe
    ├─ GateMissed                      exit 3   carries every gate and its value
    ├─ LockError                       exit 4   the plan or lock says something would change
    ├─ MachineError(RuntimeError)      exit 5   engine missing, too little disk or memory
    └─ StepError(RuntimeError)         exit 1   carries the step, its log and the last lines
        └─ ArtifactMismatch(ValueError)         wrong layers, template or verifier, by name

An interrupted run (SIGINT, SIGTERM) ends with 130; finished work is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INTERRUPTED = 130


class SpeculatorsError(Exception):
    """Base of all errors whose message is meant for the user; no traceback is shown."""

    exit_code = 1


class UsageError(SpeculatorsError, ValueError):
    """A wrong argument, name or file on the command line."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a file (or `--set`), a line and a column, both from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: where, what, the offending line, and what to write instead."""

    place: Place
    what: str
    hint: str = ""
    source_line: str = ""

    def __str__(self) -> str:
        lines = [f"{self.place}: error: {self.what}"]
        if self.source_line:
            number = f"{self.place.line:>6}"
            lines.append(f"{number} | {self.source_line}")
            lines.append(f"{'':>6} | {'':>{self.place.column - 1}}^ {self.hint}".rstrip())
        elif self.hint:
            lines.append(f"{'':>6}   {self.hint}")
        return "\n".join(lines)


class RecipeError(SpeculatorsError, ValueError):
    """A recipe that cannot be run, with every problem found, ordered by place."""

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class GateMissed(SpeculatorsError):
    """A run whose figures fall short of the recipe's gates."""

    exit_code = 3


class LockError(SpeculatorsError):
    """The plan says that something would change although nothing may."""

    exit_code = 4


class MachineError(SpeculatorsError, RuntimeError):
    """This machine cannot do what the recipe asks: engine, disk or memory."""

    exit_code = 5


class StepError(SpeculatorsError, RuntimeError):
    """A step failed; `log` is its whole output and `last_lines` the end of it."""

    exit_code = 1

    def __init__(self, message: str, *, step: str = "", log: Path | None = None, last_lines: str = "") -> None:
        self.step, self.log, self.last_lines = step, log, last_lines
        super().__init__(message)


class ArtifactMismatch(StepError, ValueError):
    """An artifact made with other layers, another template or another verifier than is asked for."""
