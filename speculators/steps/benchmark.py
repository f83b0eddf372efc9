"""Tokens per second and latency of the served model, measured by GuideLLM: once for each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.pipeline.step import Context, Estimate, Scope, Step, View

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.recipe.shapes.verifier import VllmEngine

MODEL = "verifier"
"""What the served model is called; the same for all variants, so that their requests are the same."""


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """One step for each variant of the recipe; none without a benchmark."""
    if recipe.eval.benchmark is None:
        return ()
    return tuple(_step(variant.name) for variant in recipe.eval.benchmark.variants)


def _step(variant: str) -> Step:
    drafts = variant == "speculator"
    return Step(
        name=f"benchmark-{variant}",
        version=1,
        reads=("eval.benchmark", "verifier.dtype", "verifier.engine", "verifier.trust_remote_code", "seed"),
        inputs=("verifier", "prompts", "checkpoint") if drafts else ("verifier", "prompts"),
        run=_run(drafts),
        external=_engine_version,
        estimate=_estimate,
        machine_bound=True,
    )


def _engine_version(config: View) -> Mapping[str, str]:
    """Another vLLM has another speed."""
    from speculators.errors import MachineError
    from speculators.recipe.shapes.verifier import VllmEngine

    if not isinstance(config.verifier.engine, VllmEngine):
        return {}
    from speculators.engines.vllm.environment import find_vllm

    try:
        return {"vllm": find_vllm().vllm}
    except MachineError:
        return {"vllm": "not installed"}  # the step itself says so


def _estimate(scope: Scope) -> Estimate:
    return Estimate(disk=2 << 20, memory=int(scope.facts.get("weight_bytes", 0) * 2) or None, seconds=None)


def _run(drafts: bool) -> Callable[[Context], None]:
    def run(context: Context) -> None:
        measure_variant(context, drafts=drafts)

    return run


def measure_variant(context: Context, *, drafts: bool) -> None:
    """Serve the variant, measure every level, write `benchmark.json` beside GuideLLM's own files."""
    import json

    from speculators.evaluation.guidellm import measure
    from speculators.evaluation.served_process import read_metrics, warm_up
    from speculators.verifiers.source import verifier_directory

    verifier = verifier_directory(context.inputs["verifier"])
    load = _load(context)
    levels: list[dict[str, Any]] = []
    with _serving(context, verifier, max(load.levels), drafts=drafts) as url:
        warm_up(url, MODEL, load.max_tokens)
        for number, level in enumerate(load.levels):
            folder = context.output if len(load.levels) == 1 else context.output / f"level-{level}"
            before = read_metrics(url)
            figures = measure(url, MODEL, verifier, load, folder, level)
            figures.update(_acceptance(before, read_metrics(url)))
            levels.append(figures)
            context.report.metric(
                level, {"streams": level, "output_tokens_per_second": figures["output_tokens_per_second"]}
            )
            context.report.progress(number + 1, len(load.levels), "levels")
    result = {"max_tokens": load.max_tokens, "requests_per_level": load.requests, **levels[0], "levels": levels}
    (context.output / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _load(context: Context) -> Any:
    import json

    from speculators.evaluation.guidellm import Load

    asked = context.config.eval.benchmark
    rows = map(json.loads, (context.inputs["prompts"] / "prompts.jsonl").read_text(encoding="utf-8").splitlines())
    prompts = [
        row["messages"][-1]["content"] for row in rows if row["split"] == "holdout" and len(row["messages"]) == 1
    ]
    # One request of each category after the other, so that a few requests are as varied as many.
    return Load(
        kind=asked.profile.type,
        levels=tuple(asked.profile.levels) if asked.profile.type == "concurrent" else (1,),
        requests=asked.requests_per_level,
        max_tokens=asked.max_tokens,
        prompts=tuple(_spread_out(prompts, asked.requests_per_level)),
        seed=context.config.seed,
    )


def _spread_out(prompts: list[str], count: int) -> list[str]:
    """At most `count` prompts at even distances."""
    taken = min(count, len(prompts))
    return [prompts[number * len(prompts) // taken] for number in range(taken)]


@contextmanager
def _serving(context: Context, verifier: Path, streams: int, *, drafts: bool) -> Iterator[str]:
    """The recipe's engine serving the variant; gives the base URL."""
    from speculators.recipe.shapes.verifier import VllmEngine

    engine = context.config.verifier.engine
    if isinstance(engine, VllmEngine):
        with _vllm(context, engine, verifier, drafts=drafts) as url:
            yield url
        return
    from speculators.evaluation.served_process import served

    arguments = [
        str(context.inputs["checkpoint"] if drafts else verifier),
        *("--model-name", MODEL),
        *("--dtype", context.config.verifier.dtype),
        *("--device", engine.device),
        *("--slots", str(max(streams, 1))),
    ]
    if drafts:
        arguments += ["--verifier", str(verifier)]
    if engine.threads is not None:
        arguments += ["--threads", str(engine.threads)]
    if context.trust_remote_code:
        arguments += ["--trust-remote-code"]
    with served(arguments, context.output / "server.log") as url:
        yield url


@contextmanager
def _vllm(context: Context, engine: VllmEngine, verifier: Path, *, drafts: bool) -> Iterator[str]:
    import shutil
    from dataclasses import replace

    from speculators.engines.vllm.overridden import with_verifier
    from speculators.engines.vllm.server import serve_arguments, server_options, vllm_servers

    linked = context.output / "served"
    shutil.rmtree(linked, ignore_errors=True)
    options = replace(server_options(engine), replicas=1)
    model = with_verifier(context.inputs["checkpoint"], verifier, linked) if drafts else verifier
    arguments = serve_arguments(
        model, context.config.verifier.dtype, options, trust_remote_code=context.trust_remote_code
    )
    with vllm_servers(arguments, options, context.output) as (url,):
        yield url
    shutil.rmtree(linked, ignore_errors=True)


def _acceptance(before: str, after: str) -> dict[str, Any]:
    """Acceptance length and conditional acceptance by position, from the server's counters around a measurement."""
    from speculators.engines.prometheus import by_position, parse

    counted = "spec_decode_num_drafts_total"
    drafts = sum(parse(after).get(counted, [])) - sum(parse(before).get(counted, []))
    if not drafts:
        return {"acceptance_length": None, "positions": None}
    name = "spec_decode_num_accepted_tokens_per_pos_total"
    first, last = by_position(before, name), by_position(after, name)
    accepted = [end - start for start, end in zip(first, last, strict=True)]
    reached = [drafts, *accepted[:-1]]
    return {
        "acceptance_length": 1 + sum(accepted) / drafts,
        "positions": [there / here if here else None for here, there in zip(reached, accepted, strict=True)],
    }
