"""Conversations as token ids with loss masks: the verifier's own answers as it wrote them, other data as rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import StepError, UsageError
from speculators.pipeline.step import Context, Estimate, Scope, Step

if TYPE_CHECKING:
    from speculators.data.tokens import Document
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.verifiers.tokenizer import ChatTokenizer

_BYTES_PER_TOKEN = 5  # int32 id, uint8 mask
_TOKENS_PER_SECOND = 200_000


def run(context: Context) -> None:
    """Write `tokens.safetensors` and `tokens.json`; documents without a single loss token are left out."""
    from speculators.data.tokens import TokenOrigin, save_tokens
    from speculators.verifiers.facts import VerifierFacts
    from speculators.verifiers.source import verifier_directory
    from speculators.verifiers.tokenizer import ChatTokenizer

    directory = verifier_directory(context.inputs["verifier"])
    tokenizer = ChatTokenizer.load(directory, trust_remote_code=context.trust_remote_code)
    max_length, train_on = context.config.data.max_length, context.config.data.train_on
    is_greedy = "answers" in context.inputs and context.config.data.regenerate.temperature == 0
    documents: list[Document] = []
    refused: list[str] = []
    without_loss = 0
    for record in _records(context):
        try:
            document = tokenize(record, tokenizer, max_length=max_length, train_on=train_on, is_greedy=is_greedy)
        except UsageError as error:  # one odd conversation must not cost a million good ones
            refused.append(f"{record['id']}: {error}")
            continue
        if any(document.loss_mask):
            documents.append(document)
        else:
            without_loss += 1
    if refused:
        context.report.message(f"left out {len(refused)} conversations that the chat template hides; {refused[0]}")
    if without_loss:
        context.report.message(f"left out {without_loss} conversations without an assistant's token to learn from")
    if all(document.is_holdout for document in documents):
        raise StepError(
            "no conversation is left to train on; are there answers in `data.sources`, or `data.regenerate`, and is "
            f"`data.max_length` ({max_length}) longer than the prompts?" + (f" {refused[0]}" if refused else ""),
            step="tokens",
        )
    origin = TokenOrigin(
        vocab_size=VerifierFacts.from_directory(directory).vocab_size,
        special_ids=tokenizer.special_ids,
        tokenizer_sha256=tokenizer.tokenizer_sha256,
        chat_template_sha256=tokenizer.chat_template_sha256,
        max_length=max_length,
    )
    save_tokens(context.output, documents, origin)


def tokenize(
    record: dict[str, Any], tokenizer: ChatTokenizer, *, max_length: int, train_on: Any, is_greedy: bool = False
) -> Document:
    """One line of answers or prompts as a document of at most `max_length` tokens.

    What the verifier wrote keeps its very ids: text read again by the tokenizer may come out as other tokens.
    `is_greedy` says whether it took its likeliest token each time, as for held-out prompts it always does.
    """
    from speculators.data.tokens import Document

    greedy_from = None
    if "response_token_ids" in record:
        prompt, response = record["prompt_token_ids"], record["response_token_ids"]
        ids = [*prompt, *response]
        mask = [int(train_on == "all")] * len(prompt) + [1] * len(response)
        if (is_greedy or record["split"] == "holdout") and 0 < len(prompt) < min(len(ids), max_length):
            greedy_from = len(prompt)
    else:
        ids, mask = tokenizer.render_with_mask(record["messages"], train_on=train_on, tools=record.get("tools", ()))
    sample = f"/{record['sample']}" if record.get("sample") else ""
    return Document(
        id=f"{record['id']}{sample}",
        input_ids=ids[:max_length],
        loss_mask=mask[:max_length],
        is_holdout=record["split"] == "holdout",
        greedy_from=greedy_from,
    )


def estimate(scope: Scope) -> Estimate:
    """Five bytes a token, when the number of tokens is known."""
    tokens = scope.facts.get("tokens")
    if tokens is None:
        return Estimate()
    size = int(tokens) * _BYTES_PER_TOKEN
    return Estimate(disk=size, memory=40 * size, seconds=10 + tokens / _TOKENS_PER_SECOND)


def _records(context: Context) -> Iterator[dict[str, Any]]:
    if "answers" in context.inputs:
        files = sorted(context.inputs["answers"].glob("answers-*.jsonl"))
    else:
        files = [context.inputs["prompts"] / "prompts.jsonl"]
    for file in files:
        yield from _lines(file)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """The step reads the verifier's answers, or the data's own when nothing is regenerated."""
    is_answered = recipe.data.regenerate is not None
    return (
        Step(
            "tokens",
            version=2,
            reads=("data.max_length", "data.train_on", *(("data.regenerate.temperature",) if is_answered else ())),
            inputs=("verifier", "answers" if is_answered else "prompts"),
            run=run,
            estimate=estimate,
            uses_gpu=False,
        ),
    )
