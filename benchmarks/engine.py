"""The verifier's three jobs, ours against transformers' own: greedy answers, hidden states, one token after another.

    python benchmarks/engine.py VERIFIER                   # a Hugging Face checkpoint folder
    python benchmarks/engine.py VERIFIER --draft CHECKPOINT  # also drafting, with a checkpoint of its own
    python benchmarks/engine.py VERIFIER --json

Peers: `model.generate` over prompts sorted by length in batches of equal size, and `output_hidden_states=True` over
padded batches of documents sorted by length. Greedy texts of both are compared. Everything runs in one process, one
after the other, so quote the ratios; `--dtype` is the type of the products (the residual stream stays float32 in ours).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speculators.checkpoints.load import load_draft, proposal_of
from speculators.data.tokens import Reading
from speculators.decoding.request import Request
from speculators.engines.extraction import extract
from speculators.engines.generation import generate
from speculators.engines.transformers import VerifierModel
from speculators.evaluation.acceptance import Settings, decode, round_figures

QUESTIONS = (
    "What is photosynthesis?",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "List five differences between a lake and a sea, with one sentence for each.",
    "Explain to a child why the sky is blue, in simple words.",
    "Give me a recipe.",
    "Summarise the plot of Romeo and Juliet in four sentences, and say what you think of its ending.",
    "How many hours are there in three weeks? Show the calculation step by step.",
    "Write a Python function that returns the longest word of a text, with a docstring and an example.",
)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


@torch.no_grad()
def peer_answers(model: Any, prompts: list[list[int]], tokens: int, batch: int) -> list[list[int]]:
    """Greedy answers of `tokens` tokens by transformers' generate, in left-padded batches of like lengths."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        longest = max(len(prompts[number]) for number in numbers)
        ids = torch.zeros(len(numbers), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(numbers):
            ids[row, longest - len(prompts[number]) :] = torch.tensor(prompts[number])
            mask[row, longest - len(prompts[number]) :] = 1
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        for row, number in enumerate(numbers):
            answers[number] = out[row, longest:].tolist()
    return answers


def our_answers(verifier: VerifierModel, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The same by our continuous batches."""
    requests = [Request(prompt, tokens) for prompt in prompts]
    found = {answer.number: answer.token_ids for answer in generate(verifier, requests, batch_tokens=65_536)}
    return [list(found[number]) for number in range(len(prompts))]


@torch.no_grad()
def peer_states(model: Any, documents: list[list[int]], layers: tuple[int, ...], batch: int) -> int:
    """Streams of all documents by transformers, right-padded; how many tokens."""
    order, tokens = sorted(documents, key=len, reverse=True), 0
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        ids = torch.zeros(len(part), len(part[0]), dtype=torch.int64)
        for row, one in enumerate(part):
            ids[row, : len(one)] = torch.tensor(one)
        out = model(ids, output_hidden_states=True, use_cache=False)
        kept = [
            torch.cat([out.hidden_states[layer][row, : len(one)] for layer in layers], -1)
            for row, one in enumerate(part)
        ]
        argmax = [out.logits[row, : len(one)].argmax(-1) for row, one in enumerate(part)]
        tokens += sum(map(len, kept)) if len(argmax) == len(kept) else 0
    return tokens


def our_states(verifier: VerifierModel, documents: list[list[int]]) -> int:
    """The same by our extraction, which takes the verifier's own next token after every one."""
    readings = [Reading(torch.tensor(one), torch.ones(len(one), dtype=torch.bool)) for one in documents]
    found = extract(verifier, readings, batch_tokens=65_536)
    return sum(len(states.argmax) for states in found)


def same(mine: list[int], theirs: list[int], end: int | list[int]) -> bool:
    """Whether two texts are equal up to where the first one ends; the peer was forbidden to end."""
    ends = {end} if isinstance(end, int) else set(end)
    length = next((place for place, token in enumerate(mine) if token in ends), len(mine))
    return mine[:length] == theirs[:length]


def chains(arguments: argparse.Namespace, prompts: list[list[int]]) -> dict[str, Any]:
    """Tokens a second of one sequence at a time, without a draft and with k = 1, 2, ... proposals, in float32."""
    network = load_draft(Path(arguments.draft))
    verifier = VerifierModel.load(arguments.verifier, "float32", aux_layers=network.config.aux_layers)
    proposal, found = proposal_of(network.to("cpu", torch.float32)), {}
    for k in range(arguments.most_proposals + 1):
        settings = Settings(0.0, max(k, 1), arguments.tokens, 1)
        seconds, answers = timed(partial(decode, verifier, proposal if k else None, prompts, settings))
        figures = round_figures(answers, max(k, 1))
        found[f"proposals {k}"] = {
            "tokens_per_second": sum(len(one.tokens) for one in answers) / seconds,
            "acceptance_length": figures["acceptance_length"],
        }
    return found


def beside_transformers(arguments: argparse.Namespace, prompts: list[list[int]]) -> dict[str, Any]:
    """Tokens a second of answers and hidden states, ours and the peer's."""
    found: dict[str, Any] = {}
    peer = AutoModelForCausalLM.from_pretrained(arguments.verifier, dtype=getattr(torch, arguments.dtype)).eval()
    layers = (2, peer.config.num_hidden_layers // 2, peer.config.num_hidden_layers - 3)
    ours = VerifierModel.load(arguments.verifier, "float32", aux_layers=layers, compute_dtype=arguments.dtype)
    total = arguments.prompts * arguments.tokens
    seconds, mine = timed(lambda: our_answers(ours, prompts, arguments.tokens))
    peer_seconds, theirs = timed(lambda: peer_answers(peer, prompts, arguments.tokens, 32))
    found["answers"] = {
        "ours": total / seconds,
        "transformers": total / peer_seconds,
        "ratio": peer_seconds / seconds,
        "equal_texts": sum(same(*pair, peer.generation_config.eos_token_id) for pair in zip(mine, theirs, strict=True))
        / len(prompts),
    }
    documents = [prompt + text for prompt, text in zip(prompts, mine, strict=True)]
    seconds, tokens = timed(lambda: our_states(ours, documents))
    peer_seconds, _ = timed(lambda: peer_states(peer, documents, layers, 16))
    found["hidden states"] = {
        "ours": tokens / seconds,
        "transformers": tokens / peer_seconds,
        "ratio": peer_seconds / seconds,
    }
    return found


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verifier")
    parser.add_argument("--draft", help="a checkpoint in the speculators format")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--most-proposals", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.verifier)
    asked = [f"{QUESTIONS[number % len(QUESTIONS)]} (number {number})" for number in range(arguments.prompts)]
    prompts: list[list[int]] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in asked
    ]
    found = beside_transformers(arguments, prompts)
    if arguments.draft:
        found |= chains(arguments, prompts[:8])
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(f"{name:14}", *(f"{key} {value:,.4g}" for key, value in figures.items()), sep="  ")


if __name__ == "__main__":
    main()
