"""The figures of a run as one plain dictionary, `results.json`; every field is documented in `docs/results.md`.

The dictionary only ever grows: a field keeps its name, its unit and its meaning, and `results` counts up when one
must change. What was not measured is null or absent, never zero.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from speculators.reporting.folder import RunFolder

FORMAT = 1

STATUS_OF = {
    "step_started": "running",
    "step_finished": "finished",
    "step_cached": "cached",
    "step_failed": "failed",
}


def collect(run_folder: Path) -> dict[str, Any]:
    """All results of the run in `run_folder`; raises UsageError where there is no run."""
    run = RunFolder.open(run_folder)
    recipe = _recipe(run)
    events = run.events
    started = next((event.get("t") for event in events if event.get("event") == "run_started"), None)
    finished = next((event for event in reversed(events) if event.get("event") == "run_finished"), None)
    steps = _steps(run, over=finished is not None)
    benchmark = _benchmark(run)
    return {
        "results": FORMAT,
        "name": recipe.get("name") or run.path.parent.name,
        "description": recipe.get("description"),
        "run": run.path.name,
        "status": _status(steps, finished),
        "started": started,
        "finished": finished.get("t") if finished else None,
        "seconds": seconds_between(started, (finished or (events[-1] if events else {})).get("t")),
        "verifier": _verifier(run, recipe),
        "algorithm": (recipe.get("algorithm") or {}).get("type")
        or run.json("convert", "draft.json").get("speculators_model_type"),
        "steps": steps,
        "checkpoint": str(place) if (place := run.artifact("checkpoint")) else None,
        "training": run.json("train", "result.json") or None,
        "conversion": run.json("convert", "conversion.json") or None,
        "speculative_tokens": run.json("speculative_tokens", "speculative_tokens.json") or None,
        "acceptance": _acceptance(run),
        "benchmark": benchmark,
        "speedup": speedup(benchmark),
        "gates": [
            {key: event.get(key) for key in ("gate", "value", "passed")}
            for event in events
            if event.get("event") == "gate"
        ],
        "environment": _environment(run),
    }


def write_results(run_folder: Path) -> Path:
    """Write `results.json` into the run folder, at once or not at all, and return its path."""
    place = run_folder / "results.json"
    beside = place.with_suffix(f".json.{os.getpid()}")
    beside.write_text(json.dumps(collect(run_folder), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(place)
    return place


def speedup(benchmark: Mapping[str, Any]) -> float | None:
    """Output tokens per second with the draft over those without it, at the first level; None unless both were run."""
    rates = [(benchmark.get(variant) or {}).get("output_tokens_per_second") for variant in ("speculator", "dense")]
    return rates[0] / rates[1] if rates[0] and rates[1] else None


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Seconds between two ISO 8601 moments, None unless both are known."""
    if not start or not end:
        return None
    moments = [datetime.fromisoformat(moment.replace("Z", "+00:00")) for moment in (start, end)]
    return round((moments[1] - moments[0]).total_seconds(), 3)


def step_inputs(run: RunFolder) -> dict[str, tuple[str, ...]]:
    """The steps of the plan in order, each with the names of its inputs."""
    return {name: tuple(step.get("inputs") or ()) for name, step in planned_steps(run).items()}


def planned_steps(run: RunFolder) -> dict[str, dict[str, Any]]:
    """The steps of the plan in order, as the runner wrote them."""
    return {str(step["name"]): step for step in run.plan.get("steps") or ()}


def _recipe(run: RunFolder) -> dict[str, Any]:
    recipe = run.plan.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _steps(run: RunFolder, *, over: bool) -> dict[str, dict[str, Any]]:
    planned = planned_steps(run)
    names = list(planned)
    names += [event["step"] for event in run.events if event.get("step") and event["step"] not in names]
    steps: dict[str, dict[str, Any]] = {
        name: {"status": "pending", "seconds": None, "artifact": None} for name in dict.fromkeys(names)
    }
    begun: dict[str, str | None] = {}
    for event in run.events:
        kind, name = event.get("event"), event.get("step")
        if name not in steps or kind not in STATUS_OF:
            continue
        step = steps[name]
        step["status"] = STATUS_OF[kind]
        if kind == "step_started":
            begun[name] = event.get("t")
        else:
            seconds = event.get("seconds")
            step["seconds"] = seconds if seconds is not None else seconds_between(begun.get(name), event.get("t"))
        if kind == "step_failed":
            step["error"] = event.get("error") or event.get("message")
    for name, step in steps.items():
        if step["status"] == "pending" and planned.get(name, {}).get("state") in {"skipped", "remote"}:
            step["status"] = "skipped"
        artifact = run.artifact(name)
        if artifact is not None and (artifact / "artifact.json").is_file():
            step["artifact"] = artifact.name
            step["seconds_when_made"] = run.json(name, "artifact.json").get("seconds")
        if over and step["status"] == "running":
            step["status"] = "interrupted"
    return steps


def _status(steps: Mapping[str, Mapping[str, Any]], finished: Mapping[str, Any] | None) -> str:
    states = {step["status"] for step in steps.values()}
    if "failed" in states:
        return "failed"
    if finished is None:
        return "running"
    return str(finished.get("status") or ("interrupted" if "interrupted" in states else "finished"))


def _verifier(run: RunFolder, recipe: Mapping[str, Any]) -> dict[str, Any]:
    made = run.json("verifier", "verifier.json")
    asked = recipe.get("verifier") or {}
    source = made.get("source") or asked.get("model") or ("random" if asked.get("random") else None)
    return {"source": source, "digest": made.get("digest")}


def _acceptance(run: RunFolder) -> dict[str, Any]:
    """By suite: the figures at the first temperature of the recipe, and all of them under `temperatures`."""
    suites = run.json("acceptance", "acceptance.json").get("suites") or {}
    return {
        name: {**next(iter(by_temperature.values()), {}), "temperatures": dict(by_temperature)}
        for name, by_temperature in suites.items()
    }


def _benchmark(run: RunFolder) -> dict[str, Any]:
    found = {}
    for step in planned_steps(run):
        figures = run.json(step, "benchmark.json")
        levels = figures.get("levels") or []
        if figures:
            found[step.removeprefix("benchmark-")] = {**(levels[0] if levels else {}), **figures}
    return found


def _environment(run: RunFolder) -> dict[str, Any]:
    """What the runner wrote down, else the newest versions any artifact of this run was made with."""
    found = run.run_json("environment.json")
    if not found:
        for name in ("train", "acceptance", "verifier"):
            manifest = run.json(name, "artifact.json")
            if manifest.get("versions"):
                return {"versions": manifest["versions"], "machine": manifest.get("host")}
    return found
