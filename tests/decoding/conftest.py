"""A small real verifier, and helpers that drive the decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel

VOCABULARY = 97
AUX_LAYERS = (1, 2, 3)


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> VerifierModel:
    """A random float32 Llama whose weights are large enough that its argmax is never a near-tie."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    directory: Path = tmp_path_factory.mktemp("verifier")
    LlamaForCausalLM(config).save_pretrained(directory)
    return VerifierModel.load(directory, "float32", aux_layers=AUX_LAYERS)


@pytest.fixture(scope="session")
def greedy_text(verifier: VerifierModel) -> Callable[[list[int], int], list[int]]:
    """The verifier's greedy continuation, computed the slow way: the whole sequence again for every token."""
    known: dict[tuple[int, ...], list[int]] = {}

    def text(prompt: list[int], tokens: int) -> list[int]:
        so_far = known.setdefault(tuple(prompt), [])
        while len(so_far) < tokens:
            ids = torch.tensor([prompt + so_far])
            cache = verifier.new_cache(1, ids.shape[1])
            logits = verifier.forward(ids, cache, torch.tensor([0]), "last").logits
            assert logits is not None
            so_far.append(int(logits[0, -1].argmax()))
        return so_far[:tokens]

    return text


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of many lengths, one token included."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in (7, 1, 12, 3, 7, 20, 5, 2, 1, 9)]


@pytest.fixture(scope="session")
def run_all() -> Callable[[Decoder, list[Request]], list[list[Commit]]]:
    """Run requests through a decoder, admitting each as soon as a slot is free; the commits of each."""

    def run(decoder: Decoder, requests: list[Request]) -> list[list[Commit]]:
        commits: list[list[Commit]] = [[] for _ in requests]
        number_of: dict[int, int] = {}
        waiting = list(enumerate(requests))
        while waiting or not decoder.is_idle:
            while waiting and decoder.free:
                number, request = waiting.pop(0)
                number_of[decoder.admit(request)] = number
            for commit in decoder.step():
                commits[number_of[commit.slot]].append(commit)
        return commits

    return run
