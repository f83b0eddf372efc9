"""A Ray cluster of two nodes on this machine, and the toy's runs on it."""

import os
from functools import partial
from pathlib import Path

import pytest

from speculators.pipeline.executors.ray import RayExecutor
from speculators.pipeline.executors.requests import Requests

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'speculators[ray]'")

TOY = Path(__file__).parents[1] / "toy"


def add_node(cluster, disks, cpus, name):
    """Another node, which has the store `disks / name` where no disk is shared."""
    store = {"SPECULATORS_STORE": str(disks / name)}
    return cluster.add_node(num_cpus=cpus, env_vars=store, object_store_memory=80 * 2**20, include_dashboard=False)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory):
    """Two nodes: a head with one CPU, and another with two; their processes find the toy graph and its barriers.

    Both see all disks of this machine, and have a store of their own in `cluster.disks`, for runs in which they do not.
    """
    from ray.cluster_utils import Cluster

    disks = tmp_path_factory.mktemp("ray")
    barriers = disks / "barriers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_BARRIERS", str(barriers))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), str(Path(__file__).parents[3])]))
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        for attempts_left in (2, 1, 0):  # Ray gives a node half a minute, which a busy machine may not have
            made = Cluster()
            made.node = partial(add_node, made, disks)
            try:
                made.node(1, "head")
                made.node(2, "other")
                break
            except Exception:
                made.shutdown()
                if not attempts_left:
                    raise
        made.barriers, made.disks = barriers, disks
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def ray_toy(toy, cluster, tmp_path):
    """The toy's runs, with barriers where the cluster's processes look for them."""
    cluster.barriers.unlink(missing_ok=True)
    cluster.barriers.symlink_to(tmp_path / "barriers")
    return toy


@pytest.fixture
def executor(store, tmp_path, cluster):
    """Makes an executor on the cluster; arguments are options as on the command line, by name."""

    def make(grace=5.0, remote=None, **asked):
        requests, runs = Requests.parse(asked), tmp_path / "runs"
        return RayExecutor(requests, store.root, runs, address=cluster.address, grace=grace, remote=remote)

    return make
