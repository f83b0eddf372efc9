"""`speculators plan`: what it shows, and that it is instant."""

import json
import subprocess
import sys


def test_the_plan_shows_state_and_reason_of_every_step(toy_cli):
    toy_cli("run", "toy")
    shown = toy_cli("plan", "toy", "--set", "shards.factor=5").out
    assert "shards.factor: default -> 5" in shown
    assert "input shards changed" in shown
    assert "just now" in shown
    assert "2 steps to run" in shown


def test_check_ends_with_four_when_something_would_run(toy_cli):
    first = toy_cli("plan", "toy", "--check")
    assert first.code == 4
    assert "4 steps would run: numbers, shards, words, total" in first.err
    toy_cli("run", "toy")
    second = toy_cli("plan", "toy", "--check")
    assert second.code == 0
    assert "nothing to run" in second.out


def test_the_plan_as_json_has_what_is_hashed(toy_cli):
    plan = json.loads(toy_cli("plan", "toy", "--json", "--set", "shards.factor=5").out)
    shards = next(step for step in plan["steps"] if step["name"] == "shards")
    assert shards["hashed"]["config"] == {"shards": {"factor": 5}}
    assert shards["state"] == "run"
    assert shards["reason"] == "new"


def test_the_plan_as_mermaid_has_every_edge(toy_cli):
    lines = toy_cli("plan", "toy", "--mermaid").out.splitlines()
    assert lines[0] == "graph LR"
    assert "  shards --> total" in lines


def test_a_plan_that_does_not_fit_the_machine_says_so(toy_cli):
    assert "error: this run needs about" in toy_cli("plan", "toy", "--set", "disk=1000000000000000000").out


def test_planning_a_real_recipe_imports_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from speculators.cli import cli\n"
        f"cli.main(['plan', 'tiny', '--store', {str(tmp_path)!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'guidellm', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verifier" in done.stdout
