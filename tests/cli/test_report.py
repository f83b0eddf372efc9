"""`speculators report`: writes page and results of the run that is meant, and says where."""

import json

import pytest
from click.testing import CliRunner

from speculators.cli.report import command
from speculators.errors import UsageError


@pytest.fixture
def runs(tmp_path):
    for name in ("alpha", "beta"):
        folder = tmp_path / "runs" / name / "t1"
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps({"recipe": {"name": name}, "steps": []}))
        (folder / "events.jsonl").touch()
        (folder.parent / "latest").symlink_to("t1")
    return tmp_path / "runs"


def test_the_command_writes_page_and_results_and_prints_the_page(runs):
    outcome = CliRunner().invoke(command, ["beta", "--runs", str(runs)], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert outcome.output.strip() == str(runs / "beta" / "t1" / "report.html")
    assert (runs / "beta" / "t1" / "results.json").is_file()
    assert not (runs / "alpha" / "t1" / "report.html").exists()


def test_results_can_be_printed_for_machines(runs):
    outcome = CliRunner().invoke(command, [str(runs / "alpha" / "t1"), "--json"], catch_exceptions=False)
    assert json.loads(outcome.output)["name"] == "alpha"


def test_a_missing_run_is_named(runs):
    with pytest.raises(UsageError, match="gamma"):
        CliRunner().invoke(command, ["gamma", "--runs", str(runs)], catch_exceptions=False)
