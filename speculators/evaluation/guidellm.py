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

REPORT_VERSION = 2
SCENARIO, REPORT, PAGE, PROMPTS = "scenario.json", "guidellm.json", "guidellm.html", "prompts.jsonl"
WARMUP_SECONDS = 600


@dataclass(frozen=True)
class Load:
    """What is asked of the server: `requests` of `prompts` at each level of concurrency, answers of `max_tokens`.

    `kind` is GuideLLM's profile: synchronous, concurrent or throughput; only `concurrent` has levels.
    """

    kind: str
    levels: tuple[int, ...]
    requests: int
    max_tokens: int
    prompts: tuple[str, ...]
    seed: int = 0


def measure(target: str, model: str, tokenizer: Path, load: Load, folder: Path, level: int) -> dict[str, Any]:
    """Run one level against the server at `target`; its files stay in `folder`. Returns the level's figures.

    Raises StepError when GuideLLM fails, writes a report we do not know, or left out a request.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = prompt_rows(load.prompts, load.requests)
    (folder / PROMPTS).write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), encoding="utf-8")
    content = scenario(target, model, tokenizer, load, level)
    (folder / SCENARIO).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "guidellm", "run", "--config", SCENARIO, "--disable-console"]
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(os.environ), capture_output=True, text=True, check=False
    )
    (folder / PROMPTS).unlink()
    if done.returncode != 0 or not (folder / REPORT).is_file():
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise StepError(f"guidellm ended with code {done.returncode}:\n{last}")
    return figures(json.loads((folder / REPORT).read_text(encoding="utf-8")), load.requests, level)


def scenario(target: str, model: str, tokenizer: Path, load: Load, level: int) -> dict[str, Any]:
    """A scenario in full, so that nothing is left to GuideLLM's defaults that matters to a figure."""
    profile: dict[str, Any] = {"kind": load.kind}
    if load.kind == "concurrent":
        profile["streams"] = level
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
    """Ours without GuideLLM's overrides, and with the hub out of reach: the tokenizer is a folder."""
    kept = {name: value for name, value in environment.items() if not name.upper().startswith("GUIDELLM__")}
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def figures(report: Mapping[str, Any], requests: int, level: int) -> dict[str, Any]:
    """One level's figures out of a report: tokens per second, and times as mean, median and 95th percentile.

    Raises StepError for another report format, and unless every request was made and answered.
    """
    version = report.get("metadata", {}).get("version")
    if version != REPORT_VERSION:
        raise StepError(f"guidellm wrote report format {version}; this version reads {REPORT_VERSION}")
    (benchmark,) = report["benchmarks"]
    made = benchmark["scheduler_metrics"]["requests_made"]
    if made["successful"] != requests:
        raise StepError(
            f"guidellm answered {made['successful']} of {requests} requests "
            f"({made.get('errored', 0)} failed, {made.get('incomplete', 0)} were cut off)"
        )
    metrics = benchmark["metrics"]
    return {
        "streams": level,
        "requests": requests,
        "requests_per_second": metrics["requests_per_second"]["successful"]["mean"],
        "output_tokens_per_second": metrics["output_tokens_per_second"]["successful"]["mean"],
        "inter_token_latency_ms": _spread(metrics["inter_token_latency_ms"]),
        "time_to_first_token_ms": _spread(metrics["time_to_first_token_ms"]),
        "request_latency_s": _spread(metrics["request_latency"]),
    }


def _spread(metric: Mapping[str, Any]) -> dict[str, float]:
    values = metric["successful"]
    return {"mean": values["mean"], "p50": values["percentiles"]["p50"], "p95": values["percentiles"]["p95"]}
