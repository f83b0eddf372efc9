"""Where a run's steps run: chosen by the command line or the site's environment, never by a recipe."""

import pytest

from speculators.pipeline.executors import slurm
from speculators.pipeline.executors.base import ALONE
from speculators.pipeline.executors.local import LocalExecutor


class Noting(LocalExecutor):
    """Stands in for a cluster: runs here, and notes what it was made with and what it ran."""

    one_machine = False

    def __init__(self, requests, store, runs, *, grace, site, tell):
        super().__init__(grace)
        self.requests, self.store, self.site, self.ran = requests, store, site, []
        type(self).made.append(self)

    def memory(self, step):
        return self.requests.of(step.name, uses_gpu=step.uses_gpu).memory

    def run(self, work, caller=ALONE):
        self.ran.append(work.step)
        return super().run(work, caller)


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setattr(Noting, "made", [], raising=False)
    monkeypatch.setattr(slurm, "SlurmExecutor", Noting)
    return Noting.made


def test_the_command_line_reaches_the_executor(toy_cli, cluster, tmp_path):
    run = toy_cli(
        "run", "toy", "--executor", "slurm", "--gpus", "1", "--gpus", "shards=8", "--time", "2h", "--partition", "gpu",
        "--account", "us", "--slurm-arg=--constraint=h100", "--slurm-arg=--exclusive",
    )  # fmt: skip
    assert run.code == 0, run.err
    (made,) = cluster
    asked = made.requests.of("shards", uses_gpu=True)
    assert (asked.gpus, asked.time, asked.partition) == (8, 120, "gpu")
    assert made.site.account == "us"
    assert made.site.arguments == {"constraint": "h100", "exclusive": True}
    assert made.store == tmp_path / "store"
    assert sorted(made.ran) == ["numbers", "report", "shards", "total", "words"]


def test_a_site_chooses_in_its_environment_and_a_local_run_is_not_disturbed(toy_cli, cluster, monkeypatch):
    monkeypatch.setenv("SPECULATORS_RUN_EXECUTOR", "slurm")
    monkeypatch.setenv("SPECULATORS_RUN_PARTITION", "gpu words=cpu")
    assert toy_cli("run", "toy", "--until", "words").code == 0
    (made,) = cluster
    assert made.requests.of("words", uses_gpu=True).partition == "cpu"
    assert made.requests.of("shards", uses_gpu=True).partition == "gpu"
    assert toy_cli("run", "toy", "--executor", "local").code == 0
    assert len(cluster) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "1"], "--gpus is for --executor slurm or ray"),
        (["--executor", "ray", "--account", "us"], "--account is for --executor slurm"),
        (["--executor", "slurm", "--ray-address", "head:6379"], "--ray-address is for --executor ray"),
        (["--no-shared-disk"], "--no-shared-disk is for --executor ray"),
        (["--executor", "ray", "--no-shared-disk"], "--no-shared-disk needs --remote URL"),
        (["--executor", "slurm", "--gpus", "shard=1"], "did you mean `shards`?"),
        (["--executor", "slurm", "--slurm-arg=constraint"], "--slurm-arg=--constraint=h100"),
        (["--executor", "slurm", "--processes", "auto"], "--processes auto counts this machine's GPUs"),
        (
            ["--executor", "slurm", "--processes", "4", "--gpus", "2"],
            "--processes 4 needs as many GPUs, and 2 are asked",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(toy_cli, cluster, arguments, words):
    run = toy_cli("run", "toy", *arguments)
    assert run.code == 2
    assert words in run.err


def test_memory_is_held_against_what_is_asked_for(toy_cli, cluster, toy_memory):
    toy_memory(64 * 10**9)
    run = toy_cli("run", "toy", "--executor", "slurm", "--memory", "32GB")
    assert run.code == 5
    assert "shards needs about 64 GB of memory and can have 32 GB" in run.err
    assert toy_cli("run", "toy", "--executor", "slurm", "--memory", "96GB").code == 0


@pytest.fixture
def toy_memory(monkeypatch):
    """Sets the memory that the toy's shards are estimated to need."""

    def need(amount):
        import toy_graph

        from speculators.pipeline.step import Estimate

        steps = [
            step
            if step.name != "shards"
            else step.__class__(**{**vars(step), "estimate": lambda scope: Estimate(0, amount, 1.0)})
            for step in toy_graph.STEPS
        ]
        monkeypatch.setattr(toy_graph, "STEPS", tuple(steps))

    return need


def test_without_the_package_it_says_what_to_install(toy_cli, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("slurm", "ray"):
        run = toy_cli("run", "toy", "--executor", name)
        assert run.code == 5
        assert f"pip install 'speculators[{name}]'" in run.err


def test_help_tells_where_steps_run_apart_from_the_recipe(toy_cli):
    told = toy_cli("run", "--help").out
    assert told.index("What to run") < told.index("Where steps run") < told.index("--executor")
