"""The plan's memory estimate, beside the tensors of real training steps counted one by one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from speculators.algorithms.base import Batch
from speculators.algorithms.building import build_objective
from speculators.data.vocabulary import Coverage, DraftVocabulary
from speculators.layers.attention import PLAIN_SCORES
from speculators.losses.chunked import CHUNK_ELEMENTS, CHUNK_POSITIONS
from speculators.pipeline.step import Scope
from speculators.recipe.load import load_recipe
from speculators.steps import train as train_step
from speculators.steps import training_memory
from speculators.training.optimizers import Optimizer
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights

WITHIN = 0.15


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


FACTS = VerifierFacts(
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    layers=4,
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
)
CASES: dict[str, dict[str, Any]] = {
    "a small vocabulary, four steps": {"draft": 512, "document": 128, "answer": 80, "tokens": 512, "steps": 4},
    "the loss's chunks weigh most": {"draft": 2000, "document": 64, "answer": 30, "tokens": 512, "steps": 2},
    "long documents, answers alone": {"draft": 256, "document": 512, "answer": 511, "tokens": 512, "steps": 3},
    "Muon, wide layers": {
        "draft": 256,
        "document": 64,
        "answer": 32,
        "tokens": 128,
        "steps": 3,
        "facts": {"hidden_size": 256, "intermediate_size": 1024},
        "sets": ["train.optimizer.type=muon"],
    },
    "two layers, bfloat16": {
        "draft": 256,
        "document": 64,
        "answer": 40,
        "tokens": 256,
        "steps": 2,
        "sets": ["algorithm.layers=2", "train.precision=bfloat16"],
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_estimate_is_within_15_percent_of_what_a_training_step_takes(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("speculators.algorithms.building", "speculators.training.muon"):
        monkeypatch.setattr(f"{module}.product_dtype", lambda wanted, device="cpu": wanted)
    recipe = load_recipe(
        "tiny",
        sets=[
            "verifier.random.vocab_size=2048",
            f"algorithm.draft_vocab_size={case['draft']}",
            f"algorithm.training_time_test.steps={case['steps']}",
            f"train.tokens_per_step={case['tokens']}",
            "train.precision=float32",
            *case.get("sets", ()),
        ],
    ).recipe
    facts = replace(FACTS, **case.get("facts", {}))
    documents = case["tokens"] // case["document"]
    chains = documents * (case["answer"] - 1)
    known = {name: float(value) for name, value in vars(facts).items() if isinstance(value, int | float)} | {
        "state_bytes": 4.0,
        "batch_tokens": case["tokens"],
        "batch_chains": chains,
        "batch_scores": chains * case["document"],
        "batch_longest": (case["answer"] - 1) * case["document"],
    }
    product = 2 if recipe.train.precision == "bfloat16" else 4
    estimated = training_memory.estimated(recipe.algorithm, recipe.train, known, product=product)
    assert estimated is not None
    most = counted(recipe, facts, (case["document"],) * documents, case["answer"])
    assert estimated == pytest.approx(most, rel=WITHIN), f"{estimated / most:.3f}"


def counted(recipe: Any, facts: VerifierFacts, lengths: tuple[int, ...], answer: int) -> int:
    """The most bytes of tensors in two whole steps of the optimizer, with the batch read ahead beside them."""
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
            vocabulary(facts.vocab_size, recipe.algorithm.draft_vocab_size),
            aux_layers=(1, 2, 3),
            precision=recipe.train.precision,
            seed=0,
        )
        optimizer = Optimizer(objective.network, recipe.train.optimizer)
        read = batches(facts, lengths, answer)
        batch = next(read)
        for _ in range(2):
            following = next(read)
            evaluation = objective.evaluate(batch)
            evaluation.loss.backward()
            del evaluation
            optimizer.step(1.0, 1.0)
            batch = following
    return memory.most


def batches(facts: VerifierFacts, lengths: tuple[int, ...], answer: int) -> Iterator[Batch]:
    tokens = sum(lengths)
    mask = torch.cat([torch.arange(length) >= length - answer for length in lengths])
    while True:
        yield Batch(
            lengths=lengths,
            input_ids=torch.zeros(tokens, dtype=torch.int64),
            loss_mask=mask,
            aux=torch.randn(tokens, 3 * facts.hidden_size),
            last=torch.randn(tokens, facts.hidden_size),
            argmax=torch.zeros(tokens, dtype=torch.int64),
        )


def vocabulary(whole: int, kept: int) -> DraftVocabulary:
    ids = torch.arange(0, whole, whole // kept)[:kept]
    t2d = torch.zeros(whole, dtype=torch.bool)
    t2d[ids] = True
    return DraftVocabulary(kept, whole, ids - torch.arange(kept), t2d, Coverage(train=1.0, holdout=1.0))


def test_the_sizes_that_planning_cannot_import_are_the_real_ones() -> None:
    assert (training_memory.CHUNK_ELEMENTS, training_memory.CHUNK_POSITIONS) == (CHUNK_ELEMENTS, CHUNK_POSITIONS)
    assert training_memory.PLAIN_SCORES == PLAIN_SCORES


def memory_of(algorithm: str) -> int | None:
    recipe = load_recipe(
        "quickstart", sets=[f"algorithm={{type: {algorithm}}}", "data.hidden_states.mode=offline"]
    ).recipe
    known = dict.fromkeys(("key_value_heads", "head_dim", "attention_heads", "tokens", "documents"), 1.0)
    known |= {"hidden_size": 64.0, "vocab_size": 500.0, "intermediate_size": 128.0}
    (step,) = train_step.steps(recipe)
    return step.estimate(Scope(SimpleNamespace(algorithm=recipe.algorithm, train=recipe.train), known)).memory


def test_every_algorithm_has_an_estimate() -> None:
    for algorithm in ("eagle3", "eagle", "hass", "peagle", "dflash", "dspark", "dflash2", "xpress"):
        memory = memory_of(algorithm)
        assert memory is not None, algorithm
        assert memory > 64 * 500 * 4, algorithm


def test_nothing_is_estimated_before_the_verifier_is_known() -> None:
    recipe = load_recipe("tiny").recipe
    assert training_memory.estimated(recipe.algorithm, recipe.train, {}, product=4) is None
    other = SimpleNamespace(layers=1)
    assert training_memory.estimated(other, recipe.train, {"hidden_size": 1.0, "vocab_size": 1.0}, product=4) is None  # type: ignore[arg-type]
