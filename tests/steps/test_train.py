"""The train step: from artifacts to a draft that the checkpoint step takes, and refusals of what does not belong."""

import json
from types import SimpleNamespace

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from speculators.data.tokens import Document, TokenOrigin, save_tokens
from speculators.errors import ArtifactMismatch, MachineError
from speculators.pipeline.step import Context
from speculators.recipe.load import load_recipe
from speculators.steps import checkpoint, hidden_states, train, vocabulary
from speculators.training.loop import Silent
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer

(STEP,) = train.steps(
    SimpleNamespace(
        data=SimpleNamespace(hidden_states=SimpleNamespace(keep="always", mode="offline")),
        algorithm=SimpleNamespace(train_version=1),
    )
)
STATES = hidden_states.stored("eagle3", ("algorithm.aux_layers",))
SETS = [
    "algorithm.aux_layers=[0, 1, 2]",
    "algorithm.draft_vocab_size=64",
    "algorithm.training_time_test.steps=2",
    "data.hidden_states.dtype=float32",
    "data.hidden_states.compute_dtype=verifier",
    "train.tokens_per_step=64",
    "train.epochs=2",
    "train.precision=float32",
]


@pytest.fixture
def recipe():
    return load_recipe("tiny", sets=SETS).recipe


@pytest.fixture
def artifacts(tmp_path, verifier, recipe, run_step):
    """Tokens, vocabulary and states of twelve documents that count upwards."""
    tokenizer = ChatTokenizer.load(verifier_directory(verifier))
    origin = TokenOrigin(300, (258,), tokenizer.tokenizer_sha256, tokenizer.chat_template_sha256, 64)
    tokens = tmp_path / "made-tokens"
    tokens.mkdir()
    documents = [
        Document(str(n), [(n * 7 + i) % 60 for i in range(12 + n)], [0] * 3 + [1] * (9 + n), is_holdout=n % 4 == 3)
        for n in range(12)
    ]
    save_tokens(tokens, documents, origin)
    config = plain(recipe)
    words, _ = run_step(vocabulary.STEP, config, tokens=tokens)
    states, _ = run_step(STATES, config, verifier=verifier, tokens=tokens)
    return {"verifier": verifier, "tokens": tokens, "vocabulary": words, "hidden_states": states}


def plain(recipe):
    """A recipe's sections; steps read attributes, whichever object has them."""
    return {name: getattr(recipe, name) for name in type(recipe).__struct_fields__}


def test_the_step_leaves_a_draft_its_config_and_its_figures(recipe, run_step, artifacts, verifier):
    output, told = run_step(STEP, plain(recipe), **artifacts)
    assert sorted(file.name for file in output.iterdir()) == [
        "draft.json",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    ]
    tensors = load_file(output / "model.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if name not in {"d2t", "t2d"}} == {torch.float32}
    result = json.loads((output / "result.json").read_text())
    assert result["best"]["walk_estimate"] >= 1
    assert len(result["best"]["positions"]) == 2
    assert told.metrics
    made, _ = run_step(checkpoint.steps(recipe)[0], plain(recipe), verifier=verifier, train=output)
    assert json.loads((made / "config.json").read_text())["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_ids": [0, 1, 1]}, r"layers: `algorithm.aux_layers` is \[0, 1, 2\], the states are of \[0, 1, 1\]"),
        ({"last": "post_norm"}, "it must be from before the final norm"),
        ({"verifier_digest": "tree:1"}, "verifier: the states are from tree:1, this one is tree:0"),
        ({"hidden_size": 31}, "hidden size: the verifier has 32, the states have 31"),
        ({"tokenizer_sha256": "f" * 64}, "tokenizer: the states were made with ffffffffffff"),
        ({"documents": 11}, "documents: the states cover 11"),
    ],
)
def test_states_that_do_not_belong_are_refused_by_name(recipe, run_step, artifacts, tmp_path, change, message):
    file = artifacts["hidden_states"] / "states.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ArtifactMismatch, match=message):
        run_step(STEP, plain(recipe), **artifacts)


def test_only_states_that_are_not_kept_are_let_go(recipe):
    def releases(keep):
        states = msgspec.structs.replace(recipe.data.hidden_states, keep=keep)
        changed = msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, hidden_states=states))
        (step,) = train.steps(changed)
        return step.releases

    assert releases("until_trained") == ("hidden_states",)
    assert releases("always") == ()


def test_an_optimizer_that_needs_torchao_says_so_before_anything_runs(monkeypatch):
    config = load_recipe("tiny", sets=["train.optimizer.type=adamw8bit"]).recipe
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r'needs torchao, not installed here: pip install "speculators\[torchao\]"'):
        STEP.needs(config)
    monkeypatch.setattr(train, "find_spec", lambda name: object())
    STEP.needs(config)


def test_a_draft_divided_among_processes_is_the_one_of_a_single_process(recipe, run_step, artifacts, tmp_path):
    expected, _ = run_step(STEP, plain(recipe), **artifacts)
    whole = load_file(expected / "model.safetensors")
    output = tmp_path / "divided"
    output.mkdir()
    context = Context(
        config=SimpleNamespace(**plain(recipe)),
        inputs=artifacts,
        output=output,
        report=Silent(),
        processes=2,
        sharding="full",
        run_folder=tmp_path,
    )
    train.run(context)
    for name, one in load_file(output / "model.safetensors").items():
        torch.testing.assert_close(one, whole[name], rtol=1e-3, atol=1e-5)
