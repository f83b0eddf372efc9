"""Machines that divide a step's work: each its share, and the first one what is left of the others'."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from speculators.pipeline.shares import shares
from speculators.pipeline.step import Context, Nodes

ITEMS = range(7)


@pytest.fixture
def machine(tmp_path: Path):
    """The context of a machine among some, and what it told."""
    (tmp_path / "output").mkdir()
    (tmp_path / "locks").mkdir()
    told: list[str] = []

    def of(number: int, count: int) -> Context:
        report = SimpleNamespace(message=told.append)
        lock = tmp_path / "locks" / "answers-00"
        nodes = Nodes(count, number)
        return Context(config=None, inputs={}, output=tmp_path / "output", report=report, nodes=nodes, lock=lock)

    of.told = told
    return of


def work(context: Context, done: set[int]) -> list[int]:
    """Do what is this machine's; gives it in order."""
    found = []
    for share in shares(context):
        for item in share.left(ITEMS, done.__contains__):
            found.append(item)
            done.add(item)
    return found


def test_one_machine_does_everything_and_locks_nothing(machine, tmp_path):
    assert work(machine(0, 1), {2}) == [0, 1, 3, 4, 5, 6]
    assert not list((tmp_path / "locks").iterdir())


def test_each_does_its_own_and_the_first_the_rest(machine):
    done: set[int] = set()
    assert work(machine(1, 3), done) == [1, 4]
    assert work(machine(0, 3), done) == [0, 3, 6, 2, 5]
    assert work(machine(2, 3), done) == []


def test_the_first_waits_for_a_machine_that_is_at_its_share_and_finishes_it_when_that_is_lost(machine):
    done: set[int] = set()
    other = shares(machine(1, 2))
    done.add(next(other).left(ITEMS, done.__contains__)[0])
    found: list[int] = []
    first = threading.Thread(target=lambda: found.extend(work(machine(0, 2), done)))
    first.start()
    first.join(0.5)
    assert first.is_alive()
    assert machine.told[0].startswith("share 2 of 2 is still being done: waiting for pid ")
    other.close()  # as the end of its process would
    first.join()
    assert found == [0, 2, 4, 6, 3, 5]


def test_a_machine_that_comes_when_all_is_published_does_nothing(machine, tmp_path):
    context = machine(1, 2)
    (tmp_path / "output").rmdir()
    assert work(context, set()) == []
