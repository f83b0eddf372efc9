"""A folder that machines share, its remote store, and the machine that has filled it."""

from types import SimpleNamespace

import pytest

from speculators.pipeline.remote import Remote


@pytest.fixture
def shared(tmp_path):
    """The folder that all machines see."""
    return tmp_path / "shared"


@pytest.fixture
def remote(shared):
    """`remote()` opens the remote store as another process would."""
    return lambda: Remote.open(f"file://{shared}")


@pytest.fixture
def first(toy, remote):
    """The first machine, which has made everything and pushed it."""
    run = toy.run(push_to=remote())
    assert run.outcome.exit_code == 0
    return SimpleNamespace(**vars(toy), made=run)
