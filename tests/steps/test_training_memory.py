"""The plan's memory estimate, beside the tensors of real training steps counted one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from counted_training import FACTS, Counting, counted, known, rounds_whatever_the_processor
from transformers import AutoConfig, AutoModelForCausalLM

from speculators.layers import block_attention
from speculators.layers.attention import GPU_PART_SCORES, PART_SCORES, PLAIN_SCORES
from speculators.losses.chunked import (
    CHUNK_ELEMENTS,
    CHUNK_POSITIONS,
    GPU_CHUNK_ELEMENTS,
    StepRows,
    chunked_loss,
)
from speculators.losses.distributions import LOSSES, Target
from speculators.pipeline.step import Scope
from speculators.recipe.load import load_recipe
from speculators.steps import train as train_step
from speculators.steps import training_memory
from speculators.steps.training_memory import loss_chunks, setting
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.latent import Latent
from speculators.verifiers.mixture import Mixture

WITHIN = 0.15

EAGLE3: dict[str, dict[str, Any]] = {
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


SHAPES: dict[str, dict[str, Any]] = {
    "activations": {"document": 128, "answer": 80, "tokens": 128, "facts": {"vocab_size": 512}},
    "the loss's chunks": {"document": 32, "answer": 20, "tokens": 64, "facts": {"vocab_size": 8192}},
    "weights": {
        "document": 64,
        "answer": 16,
        "tokens": 64,
        "facts": {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 512},
    },
}
MIXED: dict[str, Any] = {
    "document": 64,
    "answer": 40,
    "tokens": 128,
    "facts": {"vocab_size": 1024, "intermediate_size": 256},
    "sets": ["train.precision=bfloat16", "train.optimizer.type=muon", "train.execution.recompute=true"],
}
"""Something of everything, in bfloat16, with Muon, and MLPs that are computed again."""
_RANDOM = "{layers: 2, hidden_size: 64, intermediate_size: 128, attention_heads: 4, key_value_heads: 2}"
_MASS = "draft_vocab_size: 256, teacher: unrenormalized"
ALGORITHMS: dict[str, str] = {
    "eagle": "type: eagle",
    "hass": "type: hass",
    "peagle": "type: peagle, draft_vocab_size: 256, layers: 2, depths: 4",
    "dflash": "type: dflash, layers: 2, block_size: 8",
    "dspark": "type: dspark, layers: 2, block_size: 4, markov_rank: 32",
    "dflash2": "type: dflash2, layers: 2, block_size: 4, selector: {rank: 32}",
    "xpress": "type: xpress, layers: 2, block_size: 4, refiner: {rank: 32}",
    "medusa": "type: medusa",
    "hydra": "type: hydra",
    "mlp_speculator": "type: mlp_speculator",
    "mtp": "type: mtp",
    "draft_model": f"type: draft_model, random: {_RANDOM}",
}
OTHERWISE: dict[str, str] = {
    "hass, five steps and ten likeliest": "type: hass, aligned_steps: 5, loss: {top_k: 1.0}",
    "peagle, nothing of the verifier's trained": f"type: peagle, {_MASS}, layers: 3, train_embeddings: false",
    "dflash, a reduced vocabulary, few anchors": f"type: dflash, {_MASS}, layers: 3, block_size: 4, anchors: 20",
    "dspark, gated": f"type: dspark, {_MASS}, layers: 1, markov_rank: 16, markov_head_type: gated, anchors: 20",
    "dspark, a memory": "type: dspark, layers: 2, block_size: 4, markov_rank: 32, markov_head_type: rnn",
    "xpress, one round": f"type: xpress, {_MASS}, layers: 1, refiner: {{rank: 16}}, free_running: {{rounds: 1}}",
    "medusa, one output layer": f"type: medusa, {_MASS}, layers: 3, shared_head: true",
    "hydra, output layers not trained": "type: hydra, layers: 2, train_head: false",
    "mlp_speculator, untied and wide": "type: mlp_speculator, tie_weights: false, inner_size: 128",
    "mtp, one step": "type: mtp, steps: 1",
    "draft_model, five layers": f"type: draft_model, random: {_RANDOM.replace('layers: 2', 'layers: 5')}",
}
_LATENT = Latent(heads=4, plain_dim=16, turned_dim=8, value_dim=16, key_value_rank=32, query_rank=48)
_EXPERTS = Mixture(count=8, per_token=2, intermediate_size=64, shared_size=64, gates_shared=True)
HEADS: dict[str, dict[str, Any]] = {
    "gates of attention": {"model_type": "qwen3_5_text"},
    "experts": {"model_type": "qwen3_next", "mixture": _EXPERTS},
    "experts and latent attention": {
        "model_type": "deepseek_v3",
        "mixture": replace(_EXPERTS, gates_shared=False, corrects=True),
        "latent": _LATENT,
    },
}


@pytest.fixture(autouse=True)
def real_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds_whatever_the_processor(monkeypatch)


@pytest.mark.parametrize("case", EAGLE3.values(), ids=EAGLE3.keys())
def test_the_estimate_is_within_15_percent_of_what_a_training_step_takes(case: dict[str, Any]) -> None:
    sets = [
        f"algorithm.draft_vocab_size={case['draft']}",
        f"algorithm.training_time_test.steps={case['steps']}",
        *case.get("sets", ()),
    ]
    check(replace(FACTS, **case.get("facts", {})), {**case, "sets": sets})


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())
def test_so_it_is_for_every_other_algorithm(algorithm: str, shape: dict[str, Any]) -> None:
    check(replace(FACTS, **shape["facts"]), {**shape, "sets": [f"algorithm={{{algorithm}}}"]})


@pytest.mark.parametrize("algorithm", [*ALGORITHMS.values(), *OTHERWISE.values()], ids=[*ALGORITHMS, *OTHERWISE])
def test_so_it_is_for_every_other_algorithm_in_bfloat16_by_muon(algorithm: str) -> None:
    sets = [f"algorithm={{{algorithm}}}", *MIXED["sets"]]
    check(replace(FACTS, **MIXED["facts"]), {**MIXED, "sets": sets})


@pytest.mark.parametrize("verifier", HEADS.values(), ids=HEADS.keys())
def test_so_it_is_for_every_kind_of_head_of_a_verifier(verifier: dict[str, Any]) -> None:
    shape = SHAPES["activations"]
    check(replace(FACTS, **shape["facts"], **verifier), {**shape, "sets": ["algorithm={type: mtp}"]})


def test_so_it_is_where_scores_of_blocks_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    few = 20_000
    whole = block_attention.block_attention
    monkeypatch.setattr(
        "speculators.algorithms.base.DraftNetwork.block_attention", lambda self, *given: whole(*given, scores=few)
    )
    monkeypatch.setattr("speculators.steps.training_memory.blocks.BLOCK_SCORES", few)
    check(FACTS, {**SHAPES["activations"], "sets": ["algorithm={type: dflash, layers: 2, block_size: 4}"]})


def test_so_it_is_for_a_named_model_whose_head_is_its_embedding(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    check(FACTS, {**SHAPES["activations"], "sets": [f"algorithm={{type: draft_model, model: {tmp_path}}}"]})


@pytest.mark.parametrize("loss", [*({name: 1.0} for name in LOSSES), {"ce": 0.1, "tv": 0.9}, {"kl": 0.5}], ids=str)
@pytest.mark.parametrize("has_mass", [False, True], ids=["whole", "reduced"])
def test_a_chunk_of_the_loss_holds_as_many_distributions_as_are_counted(loss: dict[str, float], has_mass: bool) -> None:
    positions, vocabulary = 32, 4096
    states, head = torch.randn(positions, 4), torch.randn(vocabulary, 4)

    def targets(where: slice) -> Target:
        logits = torch.nn.functional.linear(states[where], head)
        return Target(logits, logits.logsumexp(-1) + 1 if has_mass else None, is_renormalized=not has_mass)

    rows = [
        StepRows(torch.randn(count, 4, requires_grad=True), torch.arange(count), torch.ones(count))
        for count in (positions, positions - 1)
    ]
    with Counting() as memory:
        chunked_loss(rows, head, head, targets, positions, loss, positions)
    planning: Any = SimpleNamespace(
        vocabulary=vocabulary + has_mass,
        load=SimpleNamespace(answers=positions, chains=positions),
        train=SimpleNamespace(execution=SimpleNamespace(loss_positions=positions)),
        product=4,
        is_rounded=False,
        on_gpu=False,
    )
    named: Any = SimpleNamespace(named=lambda: loss)
    judged = loss_chunks.Judged(
        draft_vocabulary=vocabulary, loss=named, steps=2, is_renormalized=not has_mass, trained=0
    )
    assert loss_chunks.chunk_bytes(planning, judged) == pytest.approx(memory.most, rel=WITHIN)


def check(facts: VerifierFacts, case: dict[str, Any]) -> None:
    """Hold the estimate to two real steps on a batch of equal documents."""
    recipe = load_recipe(
        "tiny",
        sets=[
            f"verifier.random.vocab_size={facts.vocab_size}",
            "verifier.random.layers=12",
            f"train.tokens_per_step={case['tokens']}",
            "train.precision=float32",
            *case["sets"],
        ],
    ).recipe
    lengths = (case["document"],) * (case["tokens"] // case["document"])
    planned = known(facts, lengths, case["answer"], recipe.algorithm.chains_per_document)
    product = 2 if recipe.train.precision == "bfloat16" else 4
    estimated = training_memory.estimated(recipe.algorithm, recipe.train, planned, product=product)
    assert estimated is not None
    most = counted(recipe, facts, lengths, case["answer"])
    assert estimated == pytest.approx(most, rel=WITHIN), f"{estimated / most:.3f}"


def test_the_sizes_that_planning_cannot_import_are_the_real_ones() -> None:
    assert (loss_chunks.CHUNK_ELEMENTS, loss_chunks.CHUNK_POSITIONS) == (CHUNK_ELEMENTS, CHUNK_POSITIONS)
    assert loss_chunks.GPU_CHUNK_ELEMENTS == GPU_CHUNK_ELEMENTS
    assert setting.PLAIN_SCORES == PLAIN_SCORES
    assert (setting.PART_SCORES, setting.GPU_PART_SCORES) == (PART_SCORES, GPU_PART_SCORES)
    assert setting.BLOCK_SCORES == block_attention.SCORES
    assert loss_chunks.WHILE_COMPUTED.keys() == LOSSES.keys()


def memory_of(algorithm: str) -> int | None:
    recipe = load_recipe(
        "quickstart", sets=[f"algorithm={{type: {algorithm}}}", "data.hidden_states.mode=offline"]
    ).recipe
    known = dict.fromkeys(("key_value_heads", "head_dim", "attention_heads", "tokens", "documents"), 1.0)
    known |= {"hidden_size": 64.0, "vocab_size": 500.0, "intermediate_size": 128.0}
    (step,) = train_step.steps(recipe)
    return step.estimate(Scope(SimpleNamespace(algorithm=recipe.algorithm, train=recipe.train), known)).memory


def test_every_algorithm_has_an_estimate() -> None:
    for algorithm in ("eagle3", "eagle", "hass", "peagle", "dflash", "dspark", "dflash2", "xpress", "medusa", "hydra"):
        memory = memory_of(algorithm)
        assert memory is not None, algorithm
        assert memory > 64 * 500 * 4, algorithm


def load_of(facts: dict[str, float], most_chains: int | None) -> setting.Load:
    verifier = known(FACTS, (1,), 2, None)
    sizes = {name: size for name, size in verifier.items() if not name.startswith("batch_")}
    train = load_recipe("tiny", sets=["train.tokens_per_step=1000"]).recipe.train
    return setting.Setting.of(train, sizes | facts, product=4, on_gpu=False, most_chains=most_chains).load


def test_before_there_are_tokens_a_batch_is_one_answer_or_documents_of_so_many_blocks() -> None:
    expected = {"tokens": 5000.0, "documents": 10.0}
    assert load_of(expected, None) == setting.Load(1000, 1000, 1e6, 1e6, 1000)
    assert load_of(expected, 100) == setting.Load(1000, 200, 1e5, 5e4, 1000)
    assert load_of({}, 100) == setting.Load(1000, 100, 1e5, 1e5, 1000)


def test_a_batch_without_answers_has_an_estimate() -> None:
    nothing = dict.fromkeys(("batch_chains", "batch_answers", "batch_scores", "batch_longest"), 0.0)
    recipe = load_recipe("tiny").recipe
    planned = known(FACTS, (64,), 2, None) | nothing
    assert training_memory.estimated(recipe.algorithm, recipe.train, planned, product=4)


def test_nothing_is_estimated_before_the_verifier_is_known() -> None:
    recipe = load_recipe("tiny").recipe
    assert training_memory.estimated(recipe.algorithm, recipe.train, {}, product=4) is None


def test_nothing_is_estimated_for_an_algorithm_of_another_package() -> None:
    recipe = load_recipe("tiny").recipe
    own: Any = SimpleNamespace(name="own", layers=1)
    assert training_memory.estimated(own, recipe.train, {"hidden_size": 1.0, "vocab_size": 1.0}, product=4) is None
