"""GuideLLM, called as a program: a scenario file in, figures out. All that we know about it stands here.

It is a process of its own because importing it replaces asyncio's policy, and its environment is scrubbed because
`GUIDELLM__*` variables silently override a scenario. Written for GuideLLM 0.8, report format 2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.errors import StepError
from speculators.evaluation.points import Point

REPORT_VERSION = 2
SCENARIO, REPORT, PAGE, PROMPTS = "scenario.json", "guidellm.json", "guidellm.html", "prompts.jsonl"
LOG = "guidellm.log"
"""What GuideLLM said, kept when it failed."""
POLL_SECONDS = 1.0
"""How long GuideLLM waits for an answer before it looks whether it should end; see `clean_environment`."""
PERCENTILES = ("p50", "p90", "p95", "p99")
HEARD_OF_NONE = "No measurement start or end times available"
"""GuideLLM's last words where it stopped before it had heard of a single answer."""


class AnswersUnheard(StepError):
    """GuideLLM stopped counting before it had heard of every answer, though none had failed: measure again.

    Its workers tell of the end and of the last answers on two ways; on a busy machine the end can come first.
    """


@dataclass(frozen=True)
class Load:
    """What is asked of the server at each point: `requests` of `prompts`, answers of at most `max_tokens`."""

    requests: int
    max_tokens: int
    prompts: tuple[str, ...]
    seed: int = 0


def measure(target: str, model: str, tokenizer: Path, load: Load, folder: Path, point: Point) -> dict[str, Any]:
    """Put one load on the server at `target`; GuideLLM's files stay in `folder`. Returns the point's figures.

    Raises AnswersUnheard when the same load should be tried once more, and StepError when GuideLLM fails, writes a
    report we do not know, or a request failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # of an attempt that was killed
    rows = prompt_rows(load.prompts, load.requests)
    (folder / PROMPTS).write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), encoding="utf-8")
    content = scenario(target, model, tokenizer, load, point)
    (folder / SCENARIO).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    try:
        code = _run_guidellm(folder)
        if code != 0 or not (folder / REPORT).is_file():
            said = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            problem = AnswersUnheard if said and HEARD_OF_NONE in said[-1] else StepError
            raise problem("\n".join([f"guidellm ended with code {code}:", *said[-15:]]))
    finally:
        (folder / PROMPTS).unlink()
    (folder / LOG).unlink()
    return figures(json.loads((folder / REPORT).read_text(encoding="utf-8")), load.requests, point)


def _run_guidellm(folder: Path) -> int:
    """Run the scenario in `folder` to its end; gives the exit code. GuideLLM and its workers never outlive us."""
    command = [sys.executable, "-m", "speculators.engines.tied", sys.executable, "-m", "guidellm"]
    command += ["run", "--config", SCENARIO, "--disable-console"]
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=clean_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    assert process.stdin is not None  # noqa: S101  it was started with a pipe
    try:
        return process.wait()
    finally:
        process.stdin.close()
        process.wait()


def scenario(target: str, model: str, tokenizer: Path, load: Load, point: Point) -> dict[str, Any]:
    """A scenario in full, so that nothing is left to GuideLLM's defaults that matters to a figure."""
    profile: dict[str, Any] = {"kind": point.profile}
    if point.profile == "concurrent":
        profile["streams"] = point.streams
    elif point.profile == "constant":
        profile |= {"rate": point.rate, "max_concurrency": load.requests}
    elif point.profile == "throughput":
        profile["max_concurrency"] = load.requests
    backend = {
        "kind": "openai_http",
        "target": target,
        "model": model,
        "request_format": "/v1/chat/completions",
        "max_tokens": load.max_tokens,
        "extras": {"body": {"temperature": 0.0}},
        "timeout": 600,
    }
    return {
        "spec": {
            "backend": backend,
            "tokenizer": {"kind": "hf_auto", "model": str(tokenizer)},
            "data": [{"kind": "json_file", "path": PROMPTS}],
            "profile": profile,
            "constraints": [{"kind": "max_requests", "count": load.requests}],
            "metrics": {"kind": "generative", "sample_size": 0},
            "seed": {"kind": "static", "value": load.seed},
            "outputs": [{"kind": "json", "path": REPORT}, {"kind": "html", "path": PAGE}],
        }
    }


def prompt_rows(prompts: Sequence[str], count: int) -> list[str]:
    """`count` prompts. With fewer, GuideLLM would end early without a word, so they are repeated, each time with a mark
    of their own that keeps a server's prefix cache from answering for the model."""
    return [
        prompts[number % len(prompts)] + (f" ({number // len(prompts) + 1})" if number >= len(prompts) else "")
        for number in range(count)
    ]


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Ours without GuideLLM's overrides, and with the hub out of reach: the tokenizer is a folder.

    Whenever GuideLLM's wait for an answer runs out, the one that arrives in that moment can be lost (AnswersUnheard),
    so it waits longer than its own tenth of a second.
    """
    kept = {name: value for name, value in environment.items() if not name.upper().startswith("GUIDELLM__")}
    kept["GUIDELLM__MP_POLL_INTERVAL"] = str(POLL_SECONDS)
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def figures(report: Mapping[str, Any], requests: int, point: Point) -> dict[str, Any]:
    """One point's figures out of a report: tokens and requests per second, and times as mean and percentiles.

    Raises StepError for another report format and where a request failed, AnswersUnheard where one is only missing.
    """
    version = report.get("metadata", {}).get("version")
    if version != REPORT_VERSION:
        raise StepError(f"guidellm wrote report format {version}; this version reads {REPORT_VERSION}")
    (benchmark,) = report["benchmarks"]
    made = benchmark["scheduler_metrics"]["requests_made"]
    if made["successful"] != requests:
        failed, cut_off = made.get("errored", 0), made.get("incomplete", 0)
        problem = StepError if failed else AnswersUnheard
        raise problem(
            f"guidellm answered {made['successful']} of {requests} requests ({failed} failed, {cut_off} were cut off)"
        )
    metrics = benchmark["metrics"]
    return {
        "profile": point.profile,
        "streams": point.streams,
        "rate": point.rate,
        "requests": requests,
        "requests_per_second": metrics["requests_per_second"]["successful"]["mean"],
        "output_tokens_per_second": metrics["output_tokens_per_second"]["successful"]["mean"],
        "inter_token_latency_ms": _spread(metrics["inter_token_latency_ms"]),
        "time_to_first_token_ms": _spread(metrics["time_to_first_token_ms"]),
        "request_latency_s": _spread(metrics["request_latency"]),
    }


def _spread(metric: Mapping[str, Any]) -> dict[str, float]:
    values = metric["successful"]
    return {"mean": values["mean"], **{name: values["percentiles"][name] for name in PERCENTILES}}
