"""Tensors of real training steps, counted one by one, for holding the plan's memory estimate to them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from speculators.algorithms import load
from speculators.algorithms.base import Batch
from speculators.algorithms.building import build_objective
from speculators.algorithms.mtp import network as mtp
from speculators.data.vocabulary import Coverage, DraftVocabulary
from speculators.training.execution import apply_execution
from speculators.training.loop import Silent
from speculators.training.optimizers import Optimizer
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights

FACTS = VerifierFacts(
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    layers=12,
    hidden_size=64,
    intermediate_size=128,
    attention_heads=4,
    key_value_heads=2,
    head_dim=16,
    vocab_size=2048,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_ids=(),
    rope={"rope_type": "default", "rope_theta": 1e4},
    mtp_layers=1,
)


class Counting(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_iter(out):
            if isinstance(one, torch.Tensor):
                self._note(one.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def rounds_whatever_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 where they are asked for, and a verifier whose own head is made up."""
    for module in ("speculators.algorithms.building", "speculators.training.muon"):
        monkeypatch.setattr(f"{module}.product_dtype", lambda wanted, device="cpu": wanted)

    def made_up(config: Any, weights: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        return config, dict(mtp.MtpNetwork(config).state_dict())

    monkeypatch.setattr(mtp, "read_head", made_up)


def counted(recipe: Any, facts: VerifierFacts, lengths: tuple[int, ...], answer: int) -> int:
    """The most bytes of tensors in two whole steps of the optimizer, with the batch read ahead beside them."""
    layers = load(recipe.algorithm.name, "config").verifier_layers(recipe.algorithm, facts.layers)
    with Counting() as memory:
        objective = build_objective(
            recipe.algorithm,
            facts,
            VerifierWeights(
                embedding=torch.randn(facts.vocab_size, facts.hidden_size),
                head=torch.randn(facts.vocab_size, facts.hidden_size),
                norm=torch.ones(facts.hidden_size),
                eps=1e-5,
            ),
            vocabulary(facts.vocab_size, getattr(recipe.algorithm, "draft_vocab_size", None)),
            aux_layers=layers,
            precision=recipe.train.precision,
            seed=0,
        )
        apply_execution(objective, recipe.train.execution, Silent())
        optimizer = Optimizer(objective.network, recipe.train.optimizer)
        read = batches(facts, lengths, answer, len(layers))
        batch = next(read)
        for _ in range(2):
            following = next(read)
            evaluation = objective.evaluate(batch, torch.Generator().manual_seed)
            evaluation.loss.backward()
            del evaluation
            optimizer.step(1.0, 1.0)
            batch = following
    return memory.most


def known(facts: VerifierFacts, lengths: tuple[int, ...], answer: int, most_chains: int | None) -> dict[str, float]:
    """What planning knows of this verifier and of such a batch."""
    found = {name: float(value) for name, value in vars(facts).items() if isinstance(value, int | float)}
    for name, value in vars(facts).items():
        if is_dataclass(value):
            found |= {f"{name}_{one}": float(size) for one, size in vars(value).items()}
    chains = min(answer - 1, most_chains or answer)
    return found | {
        "state_bytes": 4.0,
        "batch_tokens": float(sum(lengths)),
        "batch_answers": float(len(lengths) * (answer - 1)),
        "batch_chains": float(len(lengths) * chains),
        "batch_scores": float(sum(chains * length for length in lengths)),
        "batch_longest": float(chains * max(lengths)),
    }


def batches(facts: VerifierFacts, lengths: tuple[int, ...], answer: int, streams: int) -> Iterator[Batch]:
    """Batches of documents of these lengths, of each of which the last `answer` tokens are the assistant's."""
    tokens = sum(lengths)
    mask = torch.cat([torch.arange(length) >= length - answer for length in lengths])
    while True:
        yield Batch(
            lengths=lengths,
            input_ids=torch.zeros(tokens, dtype=torch.int64),
            loss_mask=mask,
            aux=torch.randn(tokens, streams * facts.hidden_size),
            last=torch.randn(tokens, facts.hidden_size),
            argmax=torch.zeros(tokens, dtype=torch.int64),
        )


def vocabulary(whole: int, kept: int | None) -> DraftVocabulary:
    """All tokens, or every n-th."""
    coverage = Coverage(train=1.0, holdout=1.0)
    if kept is None:
        return DraftVocabulary(whole, whole, None, None, coverage)
    ids = torch.arange(0, whole, whole // kept)[:kept]
    t2d = torch.zeros(whole, dtype=torch.bool)
    t2d[ids] = True
    return DraftVocabulary(kept, whole, ids - torch.arange(kept), t2d, coverage)
