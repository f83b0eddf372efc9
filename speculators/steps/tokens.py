"""Conversations as token ids with loss masks: the verifier's own answers as it wrote them, other data as rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import StepError, UsageError
from speculators.pipeline.step import Context, Estimate, Scope, Step

if TYPE_CHECKING:
    from speculators.data.tokens import Document
    from speculators.recipe.shapes.recipe import Recipe
    from speculators.verifiers.images import ImageReader
    from speculators.verifiers.tokenizer import ChatTokenizer

_BYTES_PER_TOKEN = 5  # int32 id, uint8 mask
_TOKENS_PER_SECOND = 200_000


def run(context: Context) -> None:
    """Write `tokens.safetensors` and `tokens.json`; documents without a single loss token are left out.

    Images of the documents are in `images/`.
    """
    from speculators.data.images import carry_images
    from speculators.data.tokens import TokenOrigin, save_tokens
    from speculators.verifiers.facts import VerifierFacts
    from speculators.verifiers.source import verifier_directory
    from speculators.verifiers.tokenizer import ChatTokenizer

    directory = verifier_directory(context.inputs["verifier"])
    tokenizer = ChatTokenizer.load(directory, trust_remote_code=context.trust_remote_code)
    max_length, train_on = context.config.data.max_length, context.config.data.train_on
    is_greedy = "answers" in context.inputs and context.config.data.regenerate.temperature == 0
    source = context.inputs["answers" if "answers" in context.inputs else "prompts"]
    images = _Images(source, directory, trust_remote_code=context.trust_remote_code)
    documents: list[Document] = []
    refused: list[str] = []
    without_loss = 0
    for record in _records(context):
        try:
            document = tokenize(
                record, tokenizer, max_length=max_length, train_on=train_on, is_greedy=is_greedy, images=images
            )
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
    carry_images(source, context.output, [name for document in documents for name in document.images])
    save_tokens(context.output, documents, origin)


class _Images:
    """The images of the records that are read, and what reads them, loaded with the first one."""

    def __init__(self, source: Path, directory: Path, *, trust_remote_code: bool) -> None:
        self._source, self._directory, self._trust = source, directory, trust_remote_code

    @cached_property
    def reader(self) -> ImageReader:
        from speculators.verifiers.images import ImageReader

        return ImageReader(self._directory, trust_remote_code=self._trust)

    def files(self, names: Sequence[str]) -> tuple[Path, ...]:
        from speculators.data.images import image_files

        return image_files(self._source, names)


def tokenize(
    record: dict[str, Any],
    tokenizer: ChatTokenizer,
    *,
    max_length: int,
    train_on: Any,
    is_greedy: bool = False,
    images: _Images | None = None,
) -> Document:
    """One line of answers or prompts as a document of at most `max_length` tokens.

    What the verifier wrote keeps its very ids: text read again by the tokenizer may come out as other tokens.
    `is_greedy` says whether it took its likeliest token each time, as for held-out prompts it always does. Tokens of
    images are never learnt, and a text that is cut keeps whole images only.
    """
    from speculators.data.tokens import Document
    from speculators.verifiers.images import image_names

    names = image_names(record["messages"])
    if "response_token_ids" in record:
        prompt, response = record["prompt_token_ids"], record["response_token_ids"]
        ids = [*prompt, *response]
        mask = [int(train_on == "all")] * len(prompt) + [1] * len(response)
    else:
        ids, mask = tokenizer.render_with_mask(record["messages"], train_on=train_on, tools=record.get("tools", ()))
    if names and images is not None:
        ids, mask, names, positions = _with_images(record, ids, mask, images, names, max_length)
    else:
        positions = None
    greedy_from = None
    if "response_token_ids" in record and (is_greedy or record["split"] == "holdout"):
        begins = len(record["prompt_token_ids"])
        greedy_from = begins if 0 < begins < min(len(ids), max_length) else None  # images may have cut the ids before
    sample = f"/{record['sample']}" if record.get("sample") else ""
    return Document(
        id=f"{record['id']}{sample}",
        input_ids=ids[:max_length],
        loss_mask=mask[:max_length],
        is_holdout=record["split"] == "holdout",
        greedy_from=greedy_from,
        images=names,
        positions=positions,
    )


def _with_images(
    record: dict[str, Any],
    ids: list[int],
    mask: list[int],
    images: _Images,
    names: tuple[str, ...],
    max_length: int,
) -> tuple[list[int], list[int], tuple[str, ...], list[int]]:
    """Ids and mask with all tokens of the images, none of which counts; the images that are left, and the positions."""
    import torch

    reader, files = images.reader, images.files(names)
    if "response_token_ids" in record:  # the prompt was expanded when it was asked
        if any(number in reader.placeholder_ids for number in record["response_token_ids"]):
            raise UsageError("the answer contains a token that stands for an image")
        mask = [0 if number == reader.image_id else counts for number, counts in zip(ids, mask, strict=True)]
    else:
        ids, mask = reader.expand(ids, mask, files)
    length, count = reader.cut(ids, files, max_length)
    ids, mask, names = ids[:length], mask[:length], names[:count]
    if not names:
        return ids, mask, names, list(range(length))
    positions = reader.positions(torch.tensor([ids]), reader.grids(files[:count]))
    return ids, mask, names, positions[0, 0].tolist()  # those of time


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
