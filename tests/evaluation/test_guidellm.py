"""GuideLLM for real against our server, and what we do not let it do silently."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import psutil
import pytest

from speculators.errors import StepError
from speculators.evaluation import guidellm
from speculators.evaluation.guidellm import (
    AnswersUnheard,
    Load,
    clean_environment,
    figures,
    measure,
    prompt_rows,
    scenario,
)
from speculators.evaluation.points import SYNCHRONOUS, THROUGHPUT, Point
from speculators.evaluation.served_process import served, warm_up
from speculators.verifiers.random_model import write_random_model

SHAPE = SimpleNamespace(
    layers=2, hidden_size=32, intermediate_size=64, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "verifier"
    write_random_model(SHAPE, directory)
    return directory


def test_guidellm_measures_our_server_and_every_request_counts(verifier, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDELLM__SPEC__BACKEND__MODEL", "something-else")
    load = Load(requests=5, max_tokens=8, prompts=("Hello", "How are you?", "Write a line."))
    log = tmp_path / "server.log"
    with served([str(verifier), "--model-name", "m", "--device", "cpu"], log) as url:
        warm_up(url, "m", 4)
        found = measure(url, "m", verifier, load, tmp_path / "out", Point("concurrent", streams=2))
    assert found["requests"] == 5
    assert found["streams"] == 2
    assert found["output_tokens_per_second"] > 0
    assert 0 < found["time_to_first_token_ms"]["p50"] <= found["time_to_first_token_ms"]["p95"]
    assert found["request_latency_s"]["mean"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scenario.json", "guidellm.json", "guidellm.html"}
    assert "Write a line" not in (tmp_path / "out/guidellm.json").read_text(), "prompts do not end up in reports"


def test_a_server_that_cannot_start_is_reported_with_its_own_words(tmp_path):
    with (
        pytest.raises(StepError, match=r"ended with code 2 before it was ready: there is no folder"),
        served([str(tmp_path / "nothing")], tmp_path / "log"),
    ):
        pass


def test_a_server_that_is_killed_while_measured_is_reported(verifier, tmp_path):
    log = tmp_path / "log"
    with (
        pytest.raises(StepError, match="the server ended with code -9 while it was needed"),
        served([str(verifier), "--device", "cpu"], log),
    ):
        _kill_server()


def _kill_server():
    (tied,) = (child for child in psutil.Process().children() if "serve" in child.cmdline())
    (server,) = tied.children()
    server.kill()
    os.waitid(os.P_PID, tied.pid, os.WEXITED | os.WNOWAIT)  # its exit code is left for the measurement to read


def test_overrides_in_the_environment_never_reach_guidellm():
    cleaned = clean_environment({"GUIDELLM__SPEC__SEED": "3", "guidellm__x": "1", "PATH": "/bin"})
    assert "PATH" in cleaned
    assert [name for name in cleaned if name.lower().startswith("guidellm__")] == ["GUIDELLM__MP_POLL_INTERVAL"]


def test_prompts_are_repeated_when_there_are_too_few_and_never_twice_the_same():
    rows = prompt_rows(["a", "b"], 5)
    assert rows == ["a", "b", "a (2)", "b (2)", "a (3)"]
    assert prompt_rows(["a", "b", "c"], 2) == ["a", "b"]


def test_a_scenario_leaves_nothing_that_matters_to_defaults(tmp_path):
    load = Load(requests=9, max_tokens=33, prompts=("a",), seed=5)
    spec = scenario("http://127.0.0.1:1", "m", tmp_path, load, Point("concurrent", streams=4))["spec"]
    assert spec["profile"] == {"kind": "concurrent", "streams": 4}
    assert spec["constraints"] == [{"kind": "max_requests", "count": 9}]
    assert spec["backend"]["max_tokens"] == 33
    assert spec["backend"]["extras"]["body"]["temperature"] == 0.0
    assert spec["metrics"]["sample_size"] == 0
    assert spec["seed"] == {"kind": "static", "value": 5}
    assert json.dumps(spec)


def test_every_kind_of_load_is_written_as_guidellm_reads_it(tmp_path):
    """Each scenario through GuideLLM's own reader, which refuses what it does not know and what is missing."""
    from guidellm.benchmark import BenchmarkScenario

    load = Load(requests=9, max_tokens=33, prompts=("a",))
    written = {
        point: scenario("http://127.0.0.1:1", "m", tmp_path, load, point)
        for point in (SYNCHRONOUS, THROUGHPUT, Point("constant", rate=0.75))
    }
    assert [content["spec"]["profile"] for content in written.values()] == [
        {"kind": "synchronous"},
        {"kind": "throughput", "max_concurrency": 9},
        {"kind": "constant", "rate": 0.75, "max_concurrency": 9},
    ]
    for point, content in written.items():
        assert BenchmarkScenario(**content).spec.profile.kind == point.profile


def report(successful: int, version: int = 2) -> dict:
    one = {"successful": {"mean": 1.0, "percentiles": {"p50": 1.0, "p90": 1.5, "p95": 2.0, "p99": 3.0}}}
    names = ["requests_per_second", "output_tokens_per_second", "inter_token_latency_ms", "time_to_first_token_ms"]
    made = {"successful": successful, "errored": 1, "incomplete": 0}
    metrics = {**dict.fromkeys([*names, "request_latency"], one)}
    return {
        "metadata": {"version": version},
        "benchmarks": [{"scheduler_metrics": {"requests_made": made}, "metrics": metrics}],
    }


def test_a_request_that_is_missing_fails_the_measurement():
    spread = {"mean": 1.0, "p50": 1.0, "p90": 1.5, "p95": 2.0, "p99": 3.0}
    assert figures(report(4), 4, SYNCHRONOUS)["request_latency_s"] == spread
    with pytest.raises(StepError, match=r"answered 3 of 4 requests \(1 failed, 0 were cut off\)"):
        figures(report(3), 4, SYNCHRONOUS)


def test_a_request_that_is_missing_though_none_failed_is_worth_another_attempt():
    unheard = report(3)
    unheard["benchmarks"][0]["scheduler_metrics"]["requests_made"]["errored"] = 0
    with pytest.raises(AnswersUnheard, match=r"answered 3 of 4 requests \(0 failed, 0 were cut off\)"):
        figures(unheard, 4, SYNCHRONOUS)
    with pytest.raises(StepError) as failed:
        figures(report(3), 4, SYNCHRONOUS)
    assert not isinstance(failed.value, AnswersUnheard)


@pytest.mark.parametrize(
    ("last_words", "error"),
    [("ValueError: No measurement start or end times available.", AnswersUnheard), ("ValueError: else", StepError)],
)
def test_guidellm_that_heard_of_no_answer_is_told_from_one_that_failed(last_words, error, tmp_path, monkeypatch):
    def ended(folder):
        (folder / guidellm.LOG).write_text(f"Traceback\n{last_words}\n")
        return 1

    monkeypatch.setattr(guidellm, "_run_guidellm", ended)
    with pytest.raises(StepError, match=last_words) as found:
        measure("http://127.0.0.1:1", "m", tmp_path, Load(1, 1, ("a",)), tmp_path / "out", SYNCHRONOUS)
    assert type(found.value) is error


def test_a_report_of_another_format_is_refused():
    with pytest.raises(StepError, match="report format 3; this version reads 2"):
        figures(report(4, version=3), 4, SYNCHRONOUS)
