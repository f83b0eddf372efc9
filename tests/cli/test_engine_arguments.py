"""Arguments for vLLM come from the command line alone, reach the steps, and are refused where nothing takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from speculators.cli import cli
from speculators.errors import UsageError

ARGUMENTS = ["--engine-arg=--kv-cache-dtype=fp8", "--engine-arg=--swap-space=8"]


def test_they_stand_in_the_plan_and_in_no_key(tmp_path: Path) -> None:
    asked = ["plan", "tiny", "--json", "--set", "verifier.engine.type=vllm", "--store", str(tmp_path)]
    plain, more = (json.loads(CliRunner().invoke(cli, [*asked, *extra]).stdout) for extra in ([], ARGUMENTS))
    assert more["engine_arguments"] == ["--kv-cache-dtype=fp8", "--swap-space=8"]
    assert [step["key"] for step in more["steps"]] == [step["key"] for step in plain["steps"]]


def test_the_embedded_engine_takes_none(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["plan", "tiny", "--store", str(tmp_path), *ARGUMENTS], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
    assert "`verifier.engine.type: vllm`" in str(result.exception)


def test_a_draft_can_be_tried_in_vllm_only_when_its_verifier_is_here(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--until verifier"):
        CliRunner().invoke(
            cli,
            ["plan", "tiny", "--store", str(tmp_path), "--check-engine"],
            standalone_mode=False,
            catch_exceptions=False,
        )
