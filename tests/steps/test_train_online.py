"""One word of the recipe changed: states are made while training, the draft is the same, nothing of them stays."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from safetensors.torch import load_file

from speculators.data.tokens import Document, TokenOrigin, save_tokens
from speculators.errors import ArtifactMismatch, StepError
from speculators.pipeline.plan import make_plan
from speculators.pipeline.step import Scope
from speculators.pipeline.store import Store
from speculators.recipe.load import load_recipe
from speculators.steps import assemble, graph, hidden_states, train, vocabulary
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer

SETS = [
    "algorithm.aux_layers=[0, 1, 2]",
    "algorithm.draft_vocab_size=64",
    "algorithm.training_time_test.steps=2",
    "data.max_length=64",
    "data.regenerate.max_new_tokens=32",
    "data.hidden_states.dtype=float32",
    "train.tokens_per_step=64",
    "train.epochs=3",
]
ONLINE = ["data.hidden_states.mode=online", "data.hidden_states.buffer_tokens=256"]


@pytest.fixture
def artifacts(tmp_path, verifier, run_step):
    """Tokens and vocabulary of twenty documents that count upwards."""
    tokenizer = ChatTokenizer.load(verifier_directory(verifier))
    origin = TokenOrigin(300, (258,), tokenizer.tokenizer_sha256, tokenizer.chat_template_sha256, 64)
    tokens = tmp_path / "made-tokens"
    tokens.mkdir()
    documents = [
        Document(str(n), [(n * 7 + i) % 60 for i in range(12 + n)], [0] * 3 + [1] * (9 + n), is_holdout=n % 4 == 3)
        for n in range(20)
    ]
    save_tokens(tokens, documents, origin)
    words, _ = run_step(vocabulary.STEP, plain(loaded([]).recipe), tokens=tokens)
    return {"verifier": verifier, "tokens": tokens, "vocabulary": words}


def loaded(sets):
    return load_recipe("tiny", sets=[*SETS, *sets])


def plain(recipe):
    """A recipe's sections; steps read attributes, whichever object has them."""
    return {name: getattr(recipe, name) for name in type(recipe).__struct_fields__}


def step(recipe):
    (found,) = train.steps(recipe)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_draft_is_that_of_stored_states(run_step, artifacts, tmp_path, dtype):
    drafts, results = [], []
    for mode in ([], ONLINE):
        recipe = loaded([f"data.hidden_states.dtype={dtype}", *mode]).recipe
        config, inputs = plain(recipe), dict(artifacts)
        for stored in hidden_states.steps(recipe):
            inputs["hidden_states"], _ = run_step(stored, config, **artifacts)
        output, told = run_step(step(recipe), config, **inputs)
        assert sorted(file.name for file in output.iterdir()) == [
            "draft.json",
            "metrics.jsonl",
            "model.safetensors",
            "result.json",
        ]
        drafts.append(load_file(output / "model.safetensors"))
        results.append([line["loss"] for line in told.metrics if "loss" in line])
        results[-1].append(json.loads((output / "result.json").read_text())["best"]["loss"])
        output.rename(tmp_path / f"done-{len(drafts)}")
    offline, online = drafts
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-2, "atol": 1e-3}
    for name, tensor in offline.items():
        torch.testing.assert_close(online[name], tensor, **close)
    assert results[1] == pytest.approx(results[0], rel=close["rtol"])


def test_a_failed_engine_fails_the_step_in_its_own_words_and_leaves_no_thread(run_step, artifacts, monkeypatch):
    from speculators.engines import extraction

    extract, calls = extraction.extract, []

    def failing(*given, **options):
        calls.append(given)
        if len(calls) == 3:
            raise StepError("the verifier ran out of memory")
        return extract(*given, **options)

    monkeypatch.setattr(extraction, "extract", failing)
    recipe = loaded(ONLINE).recipe
    with pytest.raises(StepError, match="the verifier ran out of memory"):
        run_step(step(recipe), plain(recipe), **artifacts)
    assert [thread for thread in threading.enumerate() if thread.name == "states"] == []
    monkeypatch.setattr(extraction, "extract", extract)
    output, told = run_step(step(recipe), plain(recipe), **artifacts)
    assert "held-out tokens" not in {unit for _, _, unit in told.progressed}, "they were read already"
    assert not (output / "held-out").exists()


def test_tokens_of_another_tokenizer_are_refused(run_step, artifacts):
    file = artifacts["tokens"] / "tokens.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_sha256": "0" * 64}))
    recipe = loaded(ONLINE).recipe
    with pytest.raises(ArtifactMismatch, match="made with the tokenizer 000000000000"):
        run_step(step(recipe), plain(recipe), **artifacts)


def test_there_is_no_step_that_stores_states_and_training_is_keyed_by_what_makes_them(tmp_path):
    def keys(*sets):
        made = loaded(list(sets))
        plan = make_plan(assemble(made.recipe, made.data), Store.open(tmp_path))
        return {planned.name: planned.key for planned in plan.steps}

    online = keys(*ONLINE)
    assert "hidden_states" not in online
    assert online["train"] != keys()["train"]
    assert online == keys(*ONLINE, "data.hidden_states.buffer_tokens=512", "verifier.engine.threads=1")
    for change in ("data.hidden_states.dtype=bfloat16", "verifier.dtype=bfloat16", "algorithm.aux_layers=[0, 1, 3]"):
        assert online["train"] != keys(*ONLINE, change)["train"]


def test_states_that_are_not_stored_cannot_be_let_go():
    recipe = loaded([*ONLINE, "data.hidden_states.keep=until_trained"]).recipe
    assert step(recipe).releases == ()
    assert "hidden_states" not in {source for one in graph(recipe) for source in one.inputs}


def test_the_estimate_counts_the_verifier_s_work_but_no_stored_states():
    facts = {
        "layers": 7.0, "hidden_size": 64.0, "intermediate_size": 160.0, "attention_heads": 4.0, "key_value_heads": 2.0,
        "head_dim": 16.0, "vocab_size": 512.0, "weight_bytes": 1e6, "tokens": 1e9, "documents": 1e6,
        "holdout_documents": 1e4, "training_tokens_per_second": 1e6,
    }  # fmt: skip
    found = {}
    for name, sets in (("offline", []), ("online", ["data.hidden_states.mode=online"])):
        made = loaded([*sets, "train.validation.documents=10"])
        assembly = assemble(made.recipe, made.data)
        found[name] = {
            one.name: one.estimate(Scope(assembly.view(one.reads), facts))
            for one in assembly.steps
            if one.name in {"hidden_states", "train"}
        }
    states, offline, online = found["offline"]["hidden_states"], found["offline"]["train"], found["online"]["train"]
    assert online.disk - offline.disk < 1e-4 * states.disk
    assert online.seconds == pytest.approx(offline.seconds + 3 * states.seconds)
    assert online.memory > offline.memory
