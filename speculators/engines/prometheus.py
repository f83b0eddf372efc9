"""The server's counters in Prometheus' text format, under the names that vLLM gives the same figures.

Tools that read a vLLM server's `/metrics` (ours, GuideLLM's users', dashboards) read ours unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from speculators.engines.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)$")

_POSITION = re.compile(r'(?:^|,)position="(\d+)"')


def exposition(scheduler: Scheduler, model_name: str) -> str:
    """All counters and gauges of a scheduler."""
    counters, label = scheduler.counters, f'model_name="{_escaped(model_name)}"'
    lines = [
        *_metric("prompt_tokens_total", "counter", "Prompt tokens read.", [(label, counters.prompt_tokens)]),
        *_metric("generation_tokens_total", "counter", "Tokens written.", [(label, counters.generation_tokens)]),
        *_metric("num_requests_running", "gauge", "Requests being answered.", [(label, scheduler.running)]),
        *_metric("num_requests_waiting", "gauge", "Requests in the queue.", [(label, scheduler.waiting)]),
        *_metric("spec_decode_num_drafts_total", "counter", "Rounds with a proposal.", [(label, counters.drafts)]),
        *_metric("spec_decode_num_draft_tokens_total", "counter", "Tokens proposed.", [(label, counters.draft_tokens)]),
        *_metric(
            "spec_decode_num_accepted_tokens_total",
            "counter",
            "Proposed tokens accepted.",
            [(label, counters.accepted_tokens)],
        ),
        *_metric(
            "spec_decode_num_accepted_tokens_per_pos_total",
            "counter",
            "Rounds whose proposal at this position was accepted.",
            [(f'{label},position="{position}"', count) for position, count in enumerate(counters.accepted_at)],
        ),
    ]
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[str, list[float]]:
    """Samples by name without the prefix `vllm:`, in the order in which they stand; labels are dropped."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            found.setdefault(match["name"].removeprefix("vllm:"), []).append(float(match["value"]))
    return found


def by_position(text: str, name: str) -> list[float]:
    """The samples of one name by their label `position`, from 0, added up over all other labels."""
    found: dict[int, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and match["name"].removeprefix("vllm:") == name and (place := _POSITION.search(match["labels"] or "")):
            found[int(place[1])] = found.get(int(place[1]), 0.0) + float(match["value"])
    return [found[position] for position in sorted(found)]


def _metric(name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> list[str]:
    return [
        f"# HELP vllm:{name} {text}",
        f"# TYPE vllm:{name} {kind}",
        *(f"vllm:{name}{{{labels}}} {value}" for labels, value in samples),
    ]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
