"""Prompts from every source of the recipe in one form: files, data sets, and what the verifier invents itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import StepError
from speculators.pipeline.step import Context, Estimate, Scope, Step, View
from speculators.steps.speed import verifier_memory

if TYPE_CHECKING:
    from speculators.data.conversations import Conversation
    from speculators.data.magpie import Draw
    from speculators.engines.opened import Generate
    from speculators.verifiers.tokenizer import ChatTokenizer

_SECONDS_PER_DRAW = 0.1
_BYTES_PER_PROMPT = 1500


def run(context: Context) -> None:
    """Write `prompts.jsonl`, sources in the recipe's order; nothing that is held out is also in train.

    Images of the conversations are in `images/`.
    """
    from speculators.data.conversations import without_repeats, write_conversations
    from speculators.data.sources import read_source
    from speculators.verifiers.source import verifier_directory
    from speculators.verifiers.tokenizer import ChatTokenizer

    data, seed = context.config.data, context.config.seed
    directory = verifier_directory(context.inputs["verifier"])
    tokenizer = ChatTokenizer.load(directory, trust_remote_code=context.trust_remote_code)
    found: list[Conversation] = []
    for place, source in enumerate(data.sources):
        if source.synthesize is None:
            found += read_source(source, place, seed=seed, holdout=data.holdout, output=context.output)
    if any(item.images for item in found):
        _check_images(context, directory)
    clean = [item for item in found if not any(tokenizer.has_control_tokens(turn.whole) for turn in item.messages)]
    if len(clean) < len(found):
        context.report.message(f"left out {len(found) - len(clean)} conversations that contain control tokens")
    for place, source in enumerate(data.sources):
        if source.synthesize is not None:
            clean += _synthesized(context, place, source, tokenizer, directory, known=clean)
    kept = without_repeats(clean)
    if not any(item.split == "train" for item in kept):
        raise StepError(f"no prompt is left to train on; {len(found)} were read from `data.sources`", step="prompts")
    held_out = sum(item.split == "holdout" for item in kept)
    context.report.message(f"{len(kept)} prompts, {held_out} of them held out")
    write_conversations(context.output / "prompts.jsonl", kept)
    _drop_images(context.output, {name for item in kept for name in item.images})
    for scratch in context.output.glob("magpie-*"):
        scratch.unlink()


def external(config: View) -> Mapping[str, str]:
    """Digests of files and commits of data sets."""
    from speculators.data.sources import digests

    return digests(config.data.sources)


def estimate(scope: Scope) -> Estimate:
    """Only synthesis takes time worth speaking of."""
    samples = sum(source.samples or 0 for source in scope.config.data.sources if source.synthesize)
    prompts = scope.facts.get("prompts")
    memory = verifier_memory(scope) if samples else 0
    return Estimate(
        disk=None if prompts is None else int(prompts * _BYTES_PER_PROMPT),
        memory=memory,
        seconds=5.0 + samples * _SECONDS_PER_DRAW,
    )


STEP = Step(
    "prompts",
    version=2,
    reads=("data.sources", "data.holdout", "seed", "verifier.dtype", "verifier.engine"),
    inputs=("verifier",),
    run=run,
    external=external,
    estimate=estimate,
)


def _check_images(context: Context, directory: Path) -> None:
    """Raise UsageError where the verifier reads no images, MachineError where the recipe's engine cannot."""
    from speculators.engines.vllm.environment import check_takes_images
    from speculators.recipe.shapes.verifier import VllmEngine
    from speculators.verifiers.images import ImageReader

    ImageReader(directory, trust_remote_code=context.trust_remote_code)
    if isinstance(context.config.verifier.engine, VllmEngine):
        check_takes_images()


def _drop_images(output: Path, kept: set[str]) -> None:
    """Remove images of conversations that were left out."""
    from speculators.data.images import FOLDER

    for file in (output / FOLDER).glob("*"):
        if file.name not in kept:
            file.unlink()


def _synthesized(
    context: Context,
    place: int,
    source: Any,
    tokenizer: ChatTokenizer,
    directory: Path,
    *,
    known: Sequence[Conversation],
) -> list[Conversation]:
    """Draw messages until enough are kept; what an earlier attempt drew is found in its shards."""
    from speculators.data.conversations import Conversation, Message, assign_split, identify
    from speculators.data.magpie import kept_draws, next_draws

    avoid = [item.prompt for item in known]
    samples = source.samples or 0
    draws = _drawn_before(context.output, place)
    kept = kept_draws(draws, avoid=avoid, samples=samples)
    with ExitStack() as stack:
        generate: Any = None
        while count := next_draws(made=len(draws), kept=len(kept), samples=samples):
            generate = generate or stack.enter_context(_generating(context, directory))
            new = _draw(context, generate, place, source, tokenizer, range(len(draws), len(draws) + count))
            _publish(new, context.output / f"magpie-{place}-{len(draws):07d}.jsonl")
            draws += new
            kept = kept_draws(draws, avoid=avoid, samples=samples)
            context.report.progress(len(kept), samples, "prompts")
    if len(kept) < samples:
        context.report.message(f"Magpie kept {len(kept)} of {samples} prompts after {len(draws)} draws")
    found = []
    for draw in kept:
        messages = (Message("user", draw.text.strip()),)
        identity = identify(messages)
        split = assign_split(identity, context.config.data.holdout)
        found.append(Conversation(identity, messages, split, "magpie", "magpie"))
    return found


def _generating(context: Context, directory: Path) -> AbstractContextManager[Generate]:
    from speculators.engines.opened import Opening, generating, scratch_folder

    dtype = context.config.verifier.dtype
    return generating(
        Opening(
            engine=context.config.verifier.engine,
            directory=directory,
            dtype=dtype,
            # A prompt only has to be plausible, and products in bfloat16 are several times faster.
            compute_dtype="bfloat16" if dtype == "float32" else None,
            scratch=scratch_folder(context),
            trust_remote_code=context.trust_remote_code,
            arguments=context.engine_arguments,
        )
    )


def _draw(
    context: Context, generate: Generate, place: int, source: Any, tokenizer: ChatTokenizer, numbers: range
) -> list[Draw]:
    from speculators.data.magpie import Draw, draw_seed
    from speculators.decoding.request import Request

    opening = tokenizer.user_opening()
    requests = [
        Request(
            prompt_ids=opening,
            max_new_tokens=source.max_new_tokens,
            temperature=source.temperature,
            top_p=source.top_p,
            seed=draw_seed(context.config.seed, place, number),
            stop_ids=frozenset(tokenizer.stop_ids),
        )
        for number in numbers
    ]
    drawn: list[Draw | None] = [None] * len(requests)
    for answer in generate(requests):
        ids = answer.token_ids[:-1] if answer.reason == "stop" else answer.token_ids
        text = tokenizer.decode(ids, skip_special_tokens=False)
        drawn[answer.number] = Draw(numbers[answer.number], text, answer.reason)
    return [draw for draw in drawn if draw is not None]


def _publish(draws: Sequence[Draw], file: Path) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(asdict(draw), ensure_ascii=False) + "\n" for draw in draws), encoding="utf-8")
    partial.replace(file)


def _drawn_before(output: Path, place: int) -> list[Draw]:
    def read() -> Iterator[Draw]:
        from speculators.data.magpie import Draw

        for file in sorted(output.glob(f"magpie-{place}-*.jsonl")):
            with file.open(encoding="utf-8") as stream:
                for line in stream:
                    yield Draw(**json.loads(line))

    return list(read())
