"""The toy graph of the pipeline's tests behind the real commands."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

TOY = Path(__file__).parents[1] / "pipeline" / "toy"


@pytest.fixture
def toy_cli(tmp_path, monkeypatch):
    """`toy_cli("run", "toy", "--set", "numbers.count=4")` calls a command; only the recipe and its steps are toys."""
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), str(Path(__file__).parents[2])]))
    monkeypatch.setenv("SPECULATORS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    import toy_graph

    from speculators.cli import asked, plan, run
    from speculators.pipeline.plan import Selection, make_plan
    from speculators.pipeline.store import Store, default_store

    def planned(options: asked.Asked, machine=None, hardware=None, *, remote=None, meets_by_itself=False, apart=False):
        data = {}
        for text in options.sets:
            path, _, value = text.partition("=")
            first, _, second = path.partition(".")
            value = int(value) if value.isdigit() else value
            data[first] = {second: value} if second else value
        assembly = toy_graph.reassemble(data)
        loaded = SimpleNamespace(text="name: toy\n", data=assembly.data, recipe=None)
        selection = Selection(options.only, options.start, options.until, options.force)
        store = Store.open(options.store or default_store())
        return loaded, make_plan(assembly, store, selection, machine=machine, remote=remote, apart=apart)

    for module in (plan, run):
        monkeypatch.setattr(module, "planned", planned)

    def call(*arguments, answer=None):
        from speculators.cli import cli

        result = CliRunner().invoke(cli, list(arguments), input=answer, standalone_mode=False)
        failure = result.exception
        code = getattr(failure, "exit_code", 1) if failure else result.return_value or 0
        said = f"{result.stderr}{failure if failure and not isinstance(failure, SystemExit) else ''}"
        return SimpleNamespace(code=code, out=result.stdout, err=said)

    return call
