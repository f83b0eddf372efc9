"""`plan --check-engine` starts a real vLLM on the untrained draft."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.xdist_group("vllm")  # one server at a time has the machine


def test_an_untrained_draft_is_served_before_anything_is_trained(speculators, tmp_path):
    sets = ["--set", "verifier.engine.type=vllm", "--set", "verifier.random.hidden_size=128"]
    sets += ["--set", "verifier.engine.eager=true", "--set", "verifier.engine.cpu_cache=1"]
    assert speculators("run", "tiny", *sets, "--until", "verifier", folder=tmp_path).returncode == 0
    checked = speculators("plan", "tiny", *sets, "--check-engine", folder=tmp_path, timeout=900)
    assert "vLLM serves this draft: an untrained one loaded, and drafted" in checked.stdout, checked.stdout
    wrong = speculators(
        "plan", "tiny", *sets, "--check-engine", "--engine-arg=--no-such-option", folder=tmp_path, timeout=900
    )
    assert wrong.returncode == 1
    assert "unrecognized arguments: --no-such-option" in wrong.stdout
