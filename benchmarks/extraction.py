"""The verifier's two jobs beside what limits them: hidden states beside reading alone, answers beside GuideLLM.

    python benchmarks/extraction.py VERIFIER             # a Hugging Face checkpoint folder
    python benchmarks/extraction.py VERIFIER --no-vllm   # the embedded engine only
    python benchmarks/extraction.py VERIFIER --json

The limit of extraction is prefill: the same documents read with nothing kept. Extraction also writes shards to a disk,
and notes what the verifier chose inside of answers (seven tokens of ten, as in the quickstart): for greedy answers that
is their text, for sampled ones it costs an argmax over the whole vocabulary. The limit of answering through vLLM is
what GuideLLM gets from the same server at the same concurrency. Servers start outside of the clock; quote the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from speculators.data.conversations import read_rows
from speculators.data.hidden_states import plan_shards
from speculators.data.tokens import Reading
from speculators.decoding.request import Request
from speculators.engines.extraction import MOST_BATCH_TOKENS, length_sorted
from speculators.engines.opened import Extract, Opening, extracting
from speculators.engines.stored_states import write_shards
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm.answers import answers
from speculators.engines.vllm.client import Call, complete
from speculators.engines.vllm.environment import find_vllm
from speculators.engines.vllm.server import MODEL, serve_arguments, server_options, vllm_servers
from speculators.errors import MachineError
from speculators.evaluation.guidellm import Load, measure
from speculators.evaluation.points import Point
from speculators.evaluation.served_process import warm_up
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine
from speculators.shipped import shipped_folder
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.layer_ids import resolve_layers
from speculators.verifiers.tokenizer import ChatTokenizer

SHARD_BYTES = 1 << 28
ROUNDS = 3


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def random_documents(count: int, vocabulary: int, answered: float) -> list[Reading]:
    """Documents of 64 to 511 tokens, the last of them, a share of `answered`, the assistant's."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(64, 512, (count,), generator=generator).tolist()
    ids = [torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths]
    return [Reading(one, torch.arange(len(one)) >= round((1 - answered) * len(one))) for one in ids]


def as_greedy(document: Reading) -> Reading:
    """The document, its answer being what the verifier chose."""
    start = int(document.predicts.nonzero()[0]) + 1
    return Reading(document.input_ids, torch.zeros_like(document.predicts), start)


def extracted(extract: Extract, documents: Sequence[Reading], facts: VerifierFacts, streams: int) -> float:
    """Seconds until the states of all documents lie in shards, as the hidden-states step writes them."""
    shards = plan_shards([len(one) for one in documents], streams * facts.hidden_size * 2 + 4, SHARD_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        return seconds(lambda: list(write_shards(extract, documents.__getitem__, shards, torch.bfloat16, Path(folder))))


def embedded(directory: Path, documents: Sequence[Reading], dtype: str) -> dict[str, float]:
    """Tokens a second of reading alone and of extraction, by the embedded engine, in the same batches.

    Extraction twice: of `documents`, and of the same as greedy answers.
    """
    facts = VerifierFacts.from_directory(directory)
    layers = resolve_layers("auto", facts.layers)

    def read(verifier: VerifierModel) -> None:
        for batch in length_sorted([len(one) for one in documents], MOST_BATCH_TOKENS):
            ids = torch.zeros(len(batch), max(len(documents[number]) for number in batch), dtype=torch.int64)
            for row, number in enumerate(batch):
                ids[row, : len(documents[number])] = documents[number].input_ids
            verifier.forward(ids, None, torch.arange(len(batch)), logits="last")

    model = VerifierModel.load(directory, dtype)
    read(model)
    engine = TransformersEngine(device="auto", threads=None, batch_tokens=16384)
    greedy = [as_greedy(one) for one in documents]
    with extracting(Opening(engine, directory, dtype, None, Path("unused")), layers) as extract:
        list(extract(documents[:8]))
        # In turns, and the best of each: other work on the machine comes and goes.
        rounds = [
            (
                seconds(lambda: read(model)),
                extracted(extract, greedy, facts, len(layers) + 1),
                extracted(extract, documents, facts, len(layers) + 1),
            )
            for _ in range(ROUNDS)
        ]
    prefill, of_greedy, of_sampled = (min(times) for times in zip(*rounds, strict=True))
    tokens = sum(map(len, documents))
    return {
        "prefill": tokens / prefill,
        "greedy": tokens / of_greedy,
        "greedy_ratio": prefill / of_greedy,
        "sampled": tokens / of_sampled,
        "sampled_ratio": prefill / of_sampled,
    }


def vllm_states(directory: Path, documents: Sequence[Reading], dtype: str, engine: VllmEngine) -> dict[str, float]:
    """The same by vLLM: prefill is a server without our connector answering each document with one token."""
    facts = VerifierFacts.from_directory(directory)
    layers = resolve_layers("auto", facts.layers)
    options = server_options(engine, ("--no-enable-prefix-caching",))
    calls = [Call({"prompt": one.input_ids.tolist(), "max_tokens": 1, "temperature": 0.0}) for one in documents]
    with tempfile.TemporaryDirectory() as folder:
        arguments = serve_arguments(directory, dtype, options, trust_remote_code=False)
        with vllm_servers(arguments, options, Path(folder)) as urls:

            def read(some: Sequence[Call]) -> Iterator[Any]:
                return complete(urls, MODEL, some, lambda answer: None, at_once=engine.concurrency)

            list(read(calls[:8]))
            prefill = seconds(lambda: list(read(calls)))
        opening = Opening(engine, directory, dtype, None, Path(folder) / "engine")
        with extracting(opening, layers) as extract:
            list(extract(documents[:8]))
            extraction = extracted(extract, documents, facts, len(layers) + 1)
    tokens = sum(map(len, documents))
    return {"prefill": tokens / prefill, "extraction": tokens / extraction, "ratio": prefill / extraction}


def vllm_answers(directory: Path, count: int, tokens: int, dtype: str, engine: VllmEngine) -> dict[str, float]:
    """Output tokens a second from one server at one concurrency: our client's, and GuideLLM's."""
    tokenizer = ChatTokenizer.load(directory)
    rows = islice(read_rows(shipped_folder("recipes") / "data/prompts.jsonl"), count)
    texts = [str(row["prompt"]) for row in rows]
    requests = [
        Request(
            tokenizer.render([{"role": "user", "content": text}], add_generation_prompt=True),
            tokens,
            stop_ids=frozenset(tokenizer.stop_ids),
        )
        for text in texts
    ]
    options = server_options(engine, ("--no-enable-prefix-caching",))
    with tempfile.TemporaryDirectory() as folder:
        arguments = serve_arguments(directory, dtype, options, trust_remote_code=False)
        with vllm_servers(arguments, options, Path(folder)) as urls:
            warm_up(urls[0], MODEL, tokens)
            begun = time.perf_counter()
            found = list(answers(urls, MODEL, requests, at_once=engine.concurrency))
            ours = sum(len(one.token_ids) for one in found) / (time.perf_counter() - begun)
            load, point = Load(len(texts), tokens, tuple(texts)), Point("concurrent", streams=engine.concurrency)
            figures = measure(urls[0], MODEL, directory, load, Path(folder) / "guidellm", point)
    theirs = figures["output_tokens_per_second"]
    return {"ours": ours, "guidellm": theirs, "ratio": ours / theirs}


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verifier", type=Path)
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--answered", type=float, default=0.7, help="share of the documents' tokens in answers")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--eager", action="store_true", help="vLLM starts faster and runs slower")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    verifier = asked.verifier.resolve()
    documents = random_documents(asked.documents, VerifierFacts.from_directory(verifier).vocab_size, asked.answered)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "states, embedded": lambda: embedded(verifier, documents, asked.dtype)
    }
    try:
        has_vllm = not asked.no_vllm and bool(find_vllm())
    except MachineError as error:
        print(error, file=sys.stderr)
        has_vllm = False
    if has_vllm:
        engine = VllmEngine(
            endpoint=None,
            concurrency=asked.concurrency,
            tensor_parallel=1,
            data_parallel=1,
            replicas=1,
            max_length=1024,
            memory_fraction=0.9,
            cpu_cache=2,
            eager=asked.eager,
            start_seconds=1800,
        )
        parts["states, vLLM"] = lambda: vllm_states(verifier, documents, asked.dtype, engine)
        parts["answers, vLLM"] = lambda: vllm_answers(verifier, asked.prompts, asked.tokens, asked.dtype, engine)
    found: dict[str, dict[str, float]] = {}
    for name, part in parts.items():
        found[name] = part()
        if not asked.json:
            figures = (f"{key} {value:,.4g}" for key, value in found[name].items())
            print(f"{name:18}", *figures, sep="  ", flush=True)
    if asked.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
