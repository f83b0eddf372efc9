"""Gates: one comparison over the figures of a run, such as `acceptance.holdout.acceptance_length >= 1.35`.

The whole grammar: numbers, dotted names of figures in results.json, `+ - * /`, parentheses, and exactly one of
`< <= > >= == !=`. `parse_gate` is for checking a recipe before it runs (it raises ValueError with the column),
`Gate.evaluate` for judging its results. A name's parts may hold letters, digits, `_` and `-`; a `-` with spaces around
it subtracts. Where a figure's own name holds a dot (`T0.0`), the longest name that exists wins.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])|(?P<name>[A-Za-z_][\w-]*(?:\.[\w-]+)*)"
    r"|(?P<symbol><=|>=|==|!=|[<>+*/()-]))"
)
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}

MOST_TOKENS = 200
"""Far beyond any real gate; keeps nested parentheses from exhausting Python's stack."""

Figures = Mapping[str, Any]
_Term = Callable[[Figures], float]


@dataclass(frozen=True)
class Judged:
    """A gate's verdict: `value` is its left side (None where a figure is missing), `why` says what was missing."""

    text: str
    value: float | None
    passed: bool
    why: str = ""


@dataclass(frozen=True)
class Gate:
    """One comparison: `left` and `right` are worked out from the figures, `names` are the figures they use."""

    text: str
    names: tuple[str, ...]
    comparison: str
    left: _Term
    right: _Term

    def evaluate(self, figures: Figures) -> Judged:
        """Judge nested `figures` (as in results.json). A figure that is missing or no number fails the gate."""
        try:
            value, bound = self.left(figures), self.right(figures)
        except (LookupError, ZeroDivisionError) as error:
            return Judged(self.text, None, passed=False, why=str(error.args[0]))
        return Judged(self.text, value, passed=_COMPARISONS[self.comparison](value, bound))


def parse_gate(text: str) -> Gate:
    """Read one gate; raises ValueError, with the column, for anything that is not one comparison."""
    tokens = list(_tokens(text))
    if len(tokens) > MOST_TOKENS:
        raise ValueError(f"{text[:40]!r}...: a gate may have at most {MOST_TOKENS} names, numbers and symbols")
    names = tuple(dict.fromkeys(found for kind, found, _ in tokens if kind == "name"))
    parser = _Parser(text, tokens)
    left = parser.sum()
    comparison = parser.take(*_COMPARISONS)
    if comparison is None:
        parser.fail("a gate needs one comparison, <, <=, >, >=, == or !=")
    right = parser.sum()
    if parser.place < len(tokens):
        parser.fail("nothing more is expected here")
    return Gate(text, names, str(comparison), left, right)


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            raise ValueError(f"{text!r}, column {column}: {text[column - 1]!r} has no meaning in a gate")
        kind = str(found.lastgroup)
        yield kind, found[kind], found.start(kind) + 1
        place = found.end()


class _Parser:
    """Recursive descent: sum = product {(+|-) product}; product = value {(*|/) value}."""

    def __init__(self, text: str, tokens: list[tuple[str, str, int]]) -> None:
        self.text, self.tokens, self.place = text, tokens, 0

    def take(self, *symbols: str) -> str | None:
        if self.place < len(self.tokens) and self.tokens[self.place][:2] in {("symbol", symbol) for symbol in symbols}:
            self.place += 1
            return self.tokens[self.place - 1][1]
        return None

    def fail(self, what: str) -> None:
        column = self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.text) + 1
        raise ValueError(f"{self.text!r}, column {column}: {what}")

    def sum(self) -> _Term:
        return self._chain(self.product, "+", "-")

    def product(self) -> _Term:
        return self._chain(self.value, "*", "/")

    def _chain(self, part: Callable[[], _Term], *symbols: str) -> _Term:
        term = part()
        while symbol := self.take(*symbols):
            term = _apply(_ARITHMETIC[symbol], term, part())
        return term

    def value(self) -> _Term:
        if self.take("-"):
            return _apply(operator.sub, lambda figures: 0.0, self.value())
        if self.take("("):
            term = self.sum()
            if not self.take(")"):
                self.fail("a parenthesis is not closed")
            return term
        kind, found, _ = self.tokens[self.place] if self.place < len(self.tokens) else ("", "", 0)
        if kind not in ("number", "name"):
            self.fail("a number or the name of a figure is expected")
        self.place += 1
        if kind == "number":
            number = float(found)
            return lambda figures: number
        return lambda figures: _look_up(found, figures)


def _apply(operation: Callable[[float, float], float], left: _Term, right: _Term) -> _Term:
    return lambda figures: operation(left(figures), right(figures))


def _look_up(name: str, figures: Figures) -> float:
    parts = name.split(".")
    here: Any = figures
    while parts:
        for count in range(len(parts), 0, -1):
            key = ".".join(parts[:count])
            if isinstance(here, Mapping) and key in here:
                here, parts = here[key], parts[count:]
                break
        else:
            known = ", ".join(map(str, here)) if isinstance(here, Mapping) else "nothing below a figure"
            raise LookupError(f"the results have no {name}; at {parts[0]!r} there is: {known}")
    if type(here) not in (int, float):  # a bool is an int to Python, and no figure
        raise LookupError(f"{name} is no number but {type(here).__name__}")
    return float(here)
