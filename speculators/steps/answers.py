"""The verifier's own answers to the prompts: what the draft learns to foresee is what this very model would say.

All requests go through one continuously filled batch, longest prompts first, of each machine its share. Every answer is
noted as it is finished, and every shard is published by a rename when its last answer is there: a killed step loses
only what was being written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.pipeline.step import Context, Estimate, Scope, Step
from speculators.steps.speed import verifier_memory, verifier_seconds

if TYPE_CHECKING:
    from speculators.data.conversations import Conversation
    from speculators.decoding.request import Request
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.verifiers.images import ImageReader
    from speculators.verifiers.tokenizer import ChatTokenizer

SHARD_ANSWERS = 256
JOURNALS = "answered*.journal"
_BYTES_PER_TOKEN = 12  # ids as JSON text, and the text itself
_REPORT_SECONDS = 0.5

Question = dict[str, Any]
"""A line of prompts.jsonl with `prompt_token_ids` and `sample`; answered, it is a line of the artifact."""


def run(context: Context) -> None:
    """Write `answers-NNNNN.jsonl`; shards that an earlier attempt finished are kept."""
    from speculators.data.conversations import read_conversations
    from speculators.pipeline.shares import shares
    from speculators.verifiers.facts import VerifierFacts
    from speculators.verifiers.source import verifier_directory
    from speculators.verifiers.tokenizer import ChatTokenizer

    directory = verifier_directory(context.inputs["verifier"])
    tokenizer = ChatTokenizer.load(directory, trust_remote_code=context.trust_remote_code)
    longest = VerifierFacts.from_directory(directory).max_position_embeddings
    conversations = read_conversations(context.inputs["prompts"] / "prompts.jsonl")
    reader = _image_reader(context, directory, conversations)
    asked = list(
        _questions(conversations, tokenizer, context.config.data.regenerate, reader, context.inputs["prompts"])
    )
    questions = [question for question in asked if len(question["prompt_token_ids"]) < longest]
    if len(questions) < len(asked):
        context.report.message(f"left out {len(asked) - len(questions)} prompts of {longest} tokens or more")
    # Alike lengths share a batch; the id makes the order, and so the shards, the same every time.
    questions.sort(key=lambda question: (-len(question["prompt_token_ids"]), question["id"], question["sample"]))
    shards = [questions[start : start + SHARD_ANSWERS] for start in range(0, len(questions), SHARD_ANSWERS)]
    for share in shares(context):
        waiting = share.left(range(len(shards)), lambda number: _file(context, number).is_file())
        if waiting:
            _answer(context, directory, tokenizer, shards, waiting, longest)
    if context.nodes.number == 0:
        for journal in context.output.glob(JOURNALS):
            journal.unlink()


def _image_reader(context: Context, directory: Path, conversations: Sequence[Conversation]) -> ImageReader | None:
    """What reads the prompts' images, which the first machine copies into this artifact; None where there are none."""
    from speculators.data.images import carry_images
    from speculators.verifiers.images import ImageReader

    names = [name for item in conversations for name in item.as_prompt().images]
    if not names:
        return None
    if context.nodes.number == 0:
        carry_images(context.inputs["prompts"], context.output, names)
    return ImageReader(directory, trust_remote_code=context.trust_remote_code)


def answer_seed(seed: int, identity: str, sample: int) -> int:
    """The seed of one answer, 63 bits: it depends on nothing but the recipe's seed, the prompt and the sample."""
    digest = hashlib.sha256(f"answer/{seed}/{identity}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def estimate(scope: Scope) -> Estimate:
    """From the number of prompts and the verifier's size, as if every answer were as long as it may be."""
    prompts, memory = scope.facts.get("prompts"), verifier_memory(scope)
    if prompts is None:
        return Estimate(memory=memory)
    regenerate = scope.config.data.regenerate
    tokens = prompts * regenerate.samples_per_prompt * regenerate.max_new_tokens
    seconds = verifier_seconds(scope, tokens, writes=True)
    return Estimate(disk=int(tokens * _BYTES_PER_TOKEN), memory=memory, seconds=seconds)


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """No step when the data's own answers are kept."""
    if recipe.data.regenerate is None:
        return ()
    return (
        Step(
            "answers",
            version=2,
            reads=("data.regenerate", "verifier.dtype", "verifier.engine", "seed"),
            inputs=("verifier", "prompts"),
            run=run,
            spans_nodes=True,
            estimate=estimate,
        ),
    )


def _questions(
    conversations: Sequence[Conversation],
    tokenizer: ChatTokenizer,
    regenerate: Any,
    reader: ImageReader | None,
    prompts: Path,
) -> Iterator[Question]:
    """Every prompt as often as it is answered: once if held out (greedily) or if all samples would be the same.

    `prompts` is their artifact.
    """
    from speculators.data.images import image_files

    for item in conversations:
        asked = item.as_prompt()
        prompt = asked.to_json()
        ids = tokenizer.render(prompt["messages"], add_generation_prompt=True, tools=item.tools)
        if reader is not None and asked.images:
            ids, _ = reader.expand(ids, [0] * len(ids), image_files(prompts, asked.images))
        once = item.split == "holdout" or regenerate.temperature == 0
        for sample in range(1 if once else regenerate.samples_per_prompt):
            yield {**prompt, "prompt_token_ids": ids, "sample": sample}


def _answer(
    context: Context,
    directory: Path,
    tokenizer: ChatTokenizer,
    shards: list[list[Question]],
    waiting: Sequence[int],
    longest: int,
) -> None:
    """Answer the questions of the shards that are still waiting, and publish each shard as it is complete."""
    from speculators.data.images import FOLDER
    from speculators.data.journal import Journal
    from speculators.engines.opened import Opening, generating, scratch_folder

    regenerate = context.config.data.regenerate
    opening = Opening(
        engine=context.config.verifier.engine,
        directory=directory,
        dtype=context.config.verifier.dtype,
        compute_dtype=None if regenerate.dtype == "verifier" else regenerate.dtype,
        scratch=scratch_folder(context),
        trust_remote_code=context.trust_remote_code,
        arguments=context.engine_arguments,
        reads_images=(context.inputs["prompts"] / FOLDER).is_dir(),
    )
    known = {
        (answer["id"], answer["sample"]): answer
        for file in context.output.glob(JOURNALS)
        for answer in Journal(file).records()
    }
    for number in waiting:
        shards[number] = [question | known.get((question["id"], question["sample"]), {}) for question in shards[number]]
    places = [
        (number, row)
        for number in waiting
        for row, question in enumerate(shards[number])
        if "response_token_ids" not in question
    ]
    requests = [
        _request(shards[number][row], regenerate, tokenizer.stop_ids, longest, context) for number, row in places
    ]
    unfinished = Counter(number for number, _ in places)
    for number in waiting:
        if not unfinished[number]:
            _publish(shards[number], _file(context, number))
    if not places:
        return
    progress = _Progress(context, len(requests))
    journal = Journal(context.output / f"answered-{context.nodes.number}.journal")
    with journal, generating(opening) as generate:
        for answer in generate(requests):
            number, row = places[answer.number]
            found = _answered(shards[number][row], answer, tokenizer)
            journal.add({"id": shards[number][row]["id"], "sample": shards[number][row]["sample"], **found})
            shards[number][row] |= found
            progress.add(len(answer.token_ids))
            unfinished[number] -= 1
            if not unfinished[number]:
                _publish(shards[number], _file(context, number))
                shards[number] = []


def _request(question: Question, regenerate: Any, stop_ids: Sequence[int], longest: int, context: Context) -> Request:
    from speculators.data.images import image_files
    from speculators.decoding.request import Request
    from speculators.verifiers.images import image_names

    return Request(
        prompt_ids=question["prompt_token_ids"],
        max_new_tokens=min(regenerate.max_new_tokens, longest - len(question["prompt_token_ids"])),
        # Held-out answers are greedy: validation estimates acceptance on the very text that evaluation will produce.
        temperature=0.0 if question["split"] == "holdout" else regenerate.temperature,
        top_p=regenerate.top_p,
        top_k=regenerate.top_k,
        seed=answer_seed(context.config.seed, question["id"], question["sample"]),
        stop_ids=frozenset(stop_ids),
        images=image_files(context.inputs["prompts"], image_names(question["messages"])),
    )


def _answered(question: Question, answer: Any, tokenizer: ChatTokenizer) -> Question:
    ids = list(answer.token_ids)
    text = tokenizer.decode(ids[:-1] if answer.reason == "stop" else ids)
    return {
        "messages": [*question["messages"], {"role": "assistant", "content": text}],
        "response_token_ids": ids,
        "finish_reason": answer.reason,
    }


def _file(context: Context, number: int) -> Path:
    return context.output / f"answers-{number:05d}.jsonl"


def _publish(answers: Sequence[Question], file: Path) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as stream:
        for answer in answers:
            stream.write(json.dumps(answer, ensure_ascii=False) + "\n")
    partial.replace(file)


class _Progress:
    """Tells how many tokens are written, of how many there will be if the rest is as long as what is done."""

    def __init__(self, context: Context, answers: int) -> None:
        self._report, self._answers = context.report, answers
        self._done, self._finished, self._told = 0, 0, 0.0

    def add(self, tokens: int) -> None:
        self._done += tokens
        self._finished += 1
        now, is_last = time.monotonic(), self._finished == self._answers
        if is_last or now - self._told >= _REPORT_SECONDS:
            self._told = now
            mean = self._done / self._finished
            total = self._done + round((self._answers - self._finished) * mean)
            self._report.progress(self._done, total, "tokens")
