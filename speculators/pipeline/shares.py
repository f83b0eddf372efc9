"""Work that machines divide: each has a share of it, and the first one does what is left of the others'.

Each share has a lock, which a machine that is lost lets go. So nothing waits for a machine that never comes, and none
does what another is doing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from speculators.pipeline.locks import hold
from speculators.pipeline.step import Context

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """One of `count` shares of what is being made in `output`."""

    output: Path
    number: int
    count: int

    def left(self, items: Sequence[Item], is_done: Callable[[Item], bool]) -> list[Item]:
        """Those of its items that are not done; none when the first machine has published all meanwhile."""
        found = [item for item in items[self.number :: self.count] if not is_done(item)]
        return found if self.output.is_dir() else []


def shares(context: Context) -> Iterator[Share]:
    """The shares that are this machine's to do, one after another: its own, and then for the first all others."""
    count, own = context.nodes.count, context.nodes.number
    if count == 1:
        yield Share(context.output, 0, 1)
        return
    for number in (own,) if own else range(count):
        with _hold_share(context, number):
            yield Share(context.output, number, count)


def _hold_share(context: Context, number: int) -> AbstractContextManager[None]:
    def tell(holder: str) -> None:
        context.report.message(f"share {number + 1} of {context.nodes.count} is still being done: waiting for {holder}")

    return hold(
        context.lock.with_name(f"{context.lock.name}.share-{number}"), run=context.run_folder.name, waiting=tell
    )
