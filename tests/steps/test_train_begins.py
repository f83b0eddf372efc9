"""A training that begins with an earlier checkpoint: EAGLE-1's draft taken on by HASS, its stages one after another."""

import json

import pytest
import torch
from safetensors.torch import load_file

from speculators.algorithms.building import build_objective
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.data.tokens import Document, TokenOrigin, save_tokens
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import ArtifactMismatch, UsageError
from speculators.recipe.load import load_recipe
from speculators.recipe.semantic import semantic
from speculators.steps import checkpoint, hidden_states, train, vocabulary
from speculators.training.beginning import begin_with
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer
from speculators.verifiers.weights import VerifierWeights

LAST = {
    "dspark": "markov_head.markov_w2.weight",
    "dflash2": "candidate_selector.hidden_projection.weight",
    "xpress": "refiner_head.readout.weight",
}
"""A tensor of what each adds."""
SETS = ["data.hidden_states.dtype=float32", "train.tokens_per_step=64", "convert.dtype=float32"]


def recipe(algorithm, *sets):
    return load_recipe("tiny", sets=[f"algorithm={{{algorithm}}}", *SETS, *sets]).recipe


def plain(one):
    return {name: getattr(one, name) for name in type(one).__struct_fields__}


@pytest.fixture
def artifacts(tmp_path, verifier, run_step):
    """Tokens, vocabulary and states of eight documents that count upwards; no stream but the last is stored."""
    tokenizer = ChatTokenizer.load(verifier_directory(verifier))
    tokens = tmp_path / "made-tokens"
    tokens.mkdir()
    documents = [
        Document(str(n), [(n * 7 + i) % 60 for i in range(12 + n)], [0] * 3 + [1] * (9 + n), is_holdout=n % 4 == 3)
        for n in range(8)
    ]
    save_tokens(
        tokens, documents, TokenOrigin(300, (258,), tokenizer.tokenizer_sha256, tokenizer.chat_template_sha256, 64)
    )
    config = recipe("type: eagle")
    words, _ = run_step(vocabulary.STEP, plain(config), tokens=tokens)
    states, _ = run_step(hidden_states.steps(config)[0], plain(config), verifier=verifier, tokens=tokens)
    assert json.loads((states / "states.json").read_text())["layer_ids"] == []
    return {"verifier": verifier, "tokens": tokens, "vocabulary": words, "hidden_states": states}


def test_hass_goes_on_from_eagle_s_draft_and_its_second_stage_from_its_first(artifacts, run_step):
    first = recipe("type: eagle")
    drafted, _ = run_step(train.steps(first)[0], plain(first), **artifacts)
    made, _ = run_step(checkpoint.steps(first)[0], plain(first), verifier=artifacts["verifier"], train=drafted)
    still = ("train.optimizer.learning_rate=1e-30", f"train.initialize_from={made}")
    second = recipe("type: hass, loss: {top_k: 0}", *still)
    (step,) = train.steps(second)
    taken, _ = run_step(step, plain(second), **artifacts)
    before, after = (load_file(one / "model.safetensors") for one in (drafted, taken))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-20)
    result = json.loads((taken / "result.json").read_text())
    assert result["best"]["walk_estimate"] >= 1


def dflash(vocabulary_of, kind="dflash", **beside):
    options = load_recipe("tiny", sets=[f"algorithm={{type: {kind}, layers: 1, block_size: 4, aux_layers: [1, 2, 3]}}"])
    facts = VerifierFacts.from_directory(vocabulary_of)
    return build_objective(
        options.recipe.algorithm, facts, VerifierWeights.read(vocabulary_of), DraftVocabulary.whole(facts.vocab_size),
        aux_layers=(1, 2, 3), precision="float32", **beside,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dspark", "dflash2", "xpress"])
def test_what_an_algorithm_adds_to_dflash_is_fresh_and_the_rest_is_the_checkpoint_s(kind, verifier, tmp_path):
    directory = verifier_directory(verifier)
    base = dflash(directory, seed=1)
    whose = VerifierName("a/b", ("LlamaForCausalLM",))
    config = speculators_config(base.network.config.to_config_json(), whose, 3, "float32")
    write_checkpoint(tmp_path / "dflash", config, base.network.state_dict())
    draft, fresh = dflash(directory, kind, seed=2).network, dflash(directory, kind, seed=2).network.state_dict()
    begin_with(draft, tmp_path / "dflash")
    taken, own = base.network.state_dict(), draft.state_dict()
    assert taken.keys() < own.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, taken.get(name, fresh[name])), name
    config = speculators_config(dflash(directory, kind, seed=2).network.config.to_config_json(), whose, 3, "float32")
    half = {name: tensor for name, tensor in own.items() if not name.endswith(LAST[kind])}
    write_checkpoint(tmp_path / "half", config, half)
    with pytest.raises(ArtifactMismatch, match=f"{LAST[kind]} is missing"):
        begin_with(draft, tmp_path / "half")


def test_the_content_of_the_checkpoint_enters_the_key_and_its_place_does_not(tmp_path):
    from speculators.recipe.view import view

    def digests(folder):
        one = recipe("type: eagle", f"train.initialize_from={folder}")
        (step,) = train.steps(one)
        assert semantic(one, step.reads) == semantic(recipe("type: eagle"), step.reads)
        return step.external(view(one, step.reads))

    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")
    (tmp_path / "c/model.safetensors").unlink()
    with pytest.raises(UsageError, match="there is no checkpoint with weights"):
        digests(tmp_path / "c")
    (fresh,) = train.steps(recipe("type: eagle"))
    assert fresh.external(view(recipe("type: eagle"), fresh.reads)) == {}


def test_another_draft_is_refused_by_its_tensors(artifacts, run_step):
    first = recipe("type: eagle, fc_bias: true")
    drafted, _ = run_step(train.steps(first)[0], plain(first), **artifacts)
    made, _ = run_step(checkpoint.steps(first)[0], plain(first), verifier=artifacts["verifier"], train=drafted)
    second = recipe("type: hass", f"train.initialize_from={made}")
    with pytest.raises(ArtifactMismatch, match=r"fc\.bias is no tensor of this draft"):
        run_step(train.steps(second)[0], plain(second), **artifacts)
