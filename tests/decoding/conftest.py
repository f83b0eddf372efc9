"""A small real verifier, and helpers that drive the decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Commit, Request
from speculators.engines.transformers import VerifierModel

VOCABULARY = 97
AUX_LAYERS = (1, 2, 3)


@pytest.fixture(scope="session")
def verifier_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 Llama whose weights are large enough that its argmax is never a near-tie."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny matrices: a second thread only waits
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
    return directory


@pytest.fixture(scope="session")
def verifier(verifier_directory: Path) -> VerifierModel:
    """That verifier, loaded with the layers that the drafts read."""
    return VerifierModel.load(verifier_directory, "float32", aux_layers=AUX_LAYERS)


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


@pytest.fixture(scope="session")
def network(
    verifier: VerifierModel, prompts: list[list[int]], greedy_text: Callable[[list[int], int], list[int]]
) -> Eagle3Network:
    """A draft with a reduced vocabulary, half fitted to the verifier's text, so that some proposals stand."""
    torch.manual_seed(2)
    config = Eagle3Config(
        hidden_size=32,
        intermediate_size=64,
        attention_heads=4,
        key_value_heads=2,
        head_dim=8,
        vocab_size=VOCABULARY,
        draft_vocab_size=80,
        aux_layers=AUX_LAYERS,
        rope={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-6,
        max_position_embeddings=512,
        norm_before_fc=True,
    )
    network = Eagle3Network(config)
    kept = torch.randperm(VOCABULARY)[:80].sort().values
    network.d2t.copy_(kept - torch.arange(80))
    network.t2d[kept] = True
    texts = [prompt + greedy_text(prompt, 28) for prompt in prompts]
    width, count = max(map(len, texts)), len(texts)
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    aux = verifier.forward(ids, verifier.new_cache(count, width), torch.arange(count), None).aux
    assert aux is not None
    targets = (ids[:, 2:, None] == kept).float()  # [texts, positions, 80]; all zeros for tokens the draft lacks
    for row, text in enumerate(texts):
        targets[row, len(text) - 2 :] = 0
    tables = network.tables(torch.arange(width - 2).expand(count, -1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        state, loss = network.fuse(aux[:, :-2]), torch.zeros(())
        for _step in range(2):  # the second step reads the first one's outputs, near enough to a real chain
            q, k, v, residual = network.qkv(0, network.embed(ids[:, 1:-1]), state, tables)
            heads = [x.transpose(1, 2) for x in (q, k, v)]
            attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
            out = network.finish_layer(0, attended.transpose(1, 2), residual)
            loss = loss - (network.logits(out).log_softmax(-1) * targets).sum() / targets.sum()
            state = torch.cat([state[:, :1], out[:, :-1]], 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(requires_grad=False).eval()
