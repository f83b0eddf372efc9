"""A remote store behind the real commands: named by the command line or the environment, never by a recipe."""

import json
from pathlib import Path

import pytest

from speculators.cli.asked import Asked, planned, remote_store


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/shared"


@pytest.fixture
def pushed(toy_cli, url):
    """What one machine has made and pushed."""
    run = toy_cli("run", "toy", "--remote", url, "--push")
    assert run.code == 0, run.err
    return run


def test_ci_checks_against_what_the_team_has_made_and_runs_only_what_is_new(toy_cli, pushed, url, tmp_path):
    assert "total: pushed 1 B to file://" in pushed.out
    elsewhere = ("--store", str(tmp_path / "ci"))
    assert toy_cli("plan", "toy", "--check", *elsewhere).code == 4
    check = toy_cli("plan", "toy", "--check", "--remote", url, *elsewhere)
    assert check.code == 0, check.err
    assert "nothing to run: everything is in the store or the remote one" in check.out
    assert "a run fetches total from the remote store" in check.out
    run = toy_cli("run", "toy", "--remote", url, *elsewhere)
    assert run.code == 0
    assert "total: fetched" in run.out
    assert "finished in" not in run.out.replace("report: finished in", "")
    status = json.loads(toy_cli("status", "--json").out)
    assert {name: step["status"] for name, step in status["steps"].items()} == {
        "numbers": "skipped", "shards": "skipped", "words": "skipped", "total": "cached", "report": "finished",
    }  # fmt: skip


def test_the_environment_names_the_store_and_asks_to_push(toy_cli, url, monkeypatch, tmp_path):
    monkeypatch.setenv("SPECULATORS_REMOTE", url)
    monkeypatch.setenv("SPECULATORS_RUN_PUSH", "1")
    assert "pushed" in toy_cli("run", "toy").out
    plan = json.loads(toy_cli("plan", "toy", "--json", "--store", str(tmp_path / "ci")).out)
    states = {step["name"]: (step["state"], step["fetch"]) for step in plan["steps"]}
    assert states["total"] == ("remote", 1)
    assert states["shards"] == ("remote", None)
    assert "remote fill" in toy_cli("plan", "toy", "--mermaid", "--store", str(tmp_path / "ci")).out


def test_pushing_without_a_store_to_push_to_is_bad_usage(toy_cli):
    run = toy_cli("run", "toy", "--push")
    assert run.code == 2
    assert "--push needs --remote URL" in run.err


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("remote", "code", "words"),
    [
        ("shared/store", 2, "write a URL such as s3://BUCKET/PREFIX"),
        ("nosuch://x/y", 2, "nosuch"),
        ("ftp://me:hunter2@127.0.0.1:1/x", 5, "--remote ftp://***@127.0.0.1:1/x cannot be used"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_before_anything_runs(toy_cli, command, remote, code, words):
    found = toy_cli(command, "toy", "--remote", remote)
    assert found.code == code
    assert words in found.err
    assert "hunter2" not in found.err + found.out
    assert not Path("runs").exists()


def test_a_store_that_may_not_be_read_is_told_while_planning(toy_cli, url, monkeypatch):
    def refuse(self, *arguments, **named):
        raise PermissionError("Forbidden")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", refuse)
    plan = toy_cli("plan", "toy", "--remote", url)
    assert plan.code == 5
    assert f"the remote store {url}: cannot be read: Forbidden" in plan.err


def test_a_missing_package_is_named_by_its_extra(toy_cli, lacking):
    lacking("s3", "s3fs")
    plan = toy_cli("plan", "toy", "--remote", "s3://bucket/prefix")
    assert plan.code == 5
    assert "pip install 'speculators[s3]'" in plan.err


def test_offline_leaves_out_a_store_on_the_network_and_not_one_on_a_disk(toy_cli, pushed, url, tmp_path):
    elsewhere = ("--offline", "--store", str(tmp_path / "ci"))
    left_out = toy_cli("plan", "toy", "--check", "--remote", "ftp://me:hunter2@127.0.0.1:1/x", *elsewhere)
    assert left_out.code == 4
    assert "--offline: the remote store ftp://***@127.0.0.1:1/x is left out" in left_out.err
    assert toy_cli("plan", "toy", "--check", "--remote", url, *elsewhere).code == 0


def test_no_secret_reaches_the_run_s_folder(toy_cli, monkeypatch):
    """A URL with a password whose store answers; only its mask is ever written."""
    from fsspec.implementations.memory import MemoryFileSystem

    opened = lambda url, **named: (MemoryFileSystem(), "/secret-store")  # noqa: E731
    monkeypatch.setattr("fsspec.core.url_to_fs", opened)
    run = toy_cli("run", "toy", "--remote", "ftp://me:hunter2@host/x", "--push", "--json")
    assert run.code == 0, run.err
    assert "to ftp://***@host/x in" in run.out
    written = [path.read_text() for path in Path("runs").rglob("*") if path.is_file()]
    assert not [text for text in [run.out, run.err, *written] if "hunter2" in text]


def test_with_code_of_a_model_s_repository_allowed_nothing_is_taken_from_elsewhere(tmp_path, url, capsys):
    """An artifact could name code to run; what a remote store gives is data only."""

    def plan(**consent):
        asked = Asked(
            recipe="tiny", sets=("verifier.trust_remote_code=true",), overlay=(), only=(), start=(), until=(), force=(),
            store=tmp_path / "store", offline=False, engine_arguments=(), remote=url, **consent,
        )  # fmt: skip
        return planned(asked, remote=remote_store(asked))[1]

    assert plan(trust_remote_code=True).remote is None
    assert "nothing is taken from file://" in capsys.readouterr().err


def test_a_verifier_in_a_folder_stays_on_its_machine(tmp_path):
    from speculators.recipe.load import load_recipe
    from speculators.steps import assemble

    def stays(*sets):
        loaded = load_recipe("tiny", (), sets)
        assembly = assemble(loaded.recipe, loaded.data)
        (step,) = (step for step in assembly.steps if step.name == "verifier")
        return step.stays(assembly.view(step.reads))

    assert not stays()
    assert stays(f"verifier.model={tmp_path}", "verifier.random=null")
