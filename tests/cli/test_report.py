"""`speculators report`: the newest run, a named one, and a clear word when there is none."""

import json
import os

import pytest
from click.testing import CliRunner

from speculators.cli.report import command, find_run
from speculators.errors import UsageError


@pytest.fixture
def runs(tmp_path):
    for index, (name, time) in enumerate([("alpha", "t1"), ("alpha", "t2"), ("beta", "t1")]):
        folder = tmp_path / "runs" / name / time
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps({"recipe": {"name": name}, "steps": []}))
        os.utime(folder / "plan.json", (1000 + index, 1000 + index))
    return tmp_path / "runs"


def test_without_a_run_the_newest_is_taken(runs):
    assert find_run(None, runs) == runs / "beta" / "t1"


def test_a_recipe_name_means_its_newest_run(runs, tmp_path):
    assert find_run(type(runs)("alpha"), runs) == runs / "alpha" / "t2"
    assert find_run(runs / "alpha" / "t1", runs) == runs / "alpha" / "t1"


def test_a_missing_run_is_named(runs):
    with pytest.raises(UsageError, match=r"no run in gamma or .*gamma"):
        find_run(type(runs)("gamma"), runs)


def test_the_command_writes_page_and_results(runs):
    outcome = CliRunner().invoke(command, ["--runs", str(runs)], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert outcome.output.strip() == str(runs / "beta" / "t1" / "report.html")
    assert (runs / "beta" / "t1" / "results.json").is_file()
    outcome = CliRunner().invoke(command, ["alpha", "--runs", str(runs), "--json"], catch_exceptions=False)
    assert json.loads(outcome.output)["name"] == "alpha"
