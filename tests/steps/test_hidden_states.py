"""The hidden-states step: shards that survive a kill, and no states for tokens of another tokenizer."""

import json

import pytest
import torch

from speculators.data.hidden_states import NOT_TAKEN, HiddenStates
from speculators.data.tokens import Document, TokenDataset, TokenOrigin, save_tokens
from speculators.engines.transformers import VerifierModel
from speculators.errors import ArtifactMismatch
from speculators.pipeline.step import Nodes
from speculators.steps import hidden_states
from speculators.steps.hidden_states import stored
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer

STEP = stored("eagle3", ("algorithm.aux_layers",))
LENGTHS = (9, 4, 17, 6, 11, 3)


@pytest.fixture
def values(make_recipe):
    made = make_recipe(algorithm__aux_layers=(0, 1, 2), verifier__trust_remote_code=False)
    made["data"]["hidden_states"] = {"dtype": "float32", "compute_dtype": "verifier", "keep": "always"}
    return made


@pytest.fixture
def tokens(tmp_path, verifier):
    tokenizer = ChatTokenizer.load(verifier_directory(verifier))
    origin = TokenOrigin(300, (258,), tokenizer.tokenizer_sha256, tokenizer.chat_template_sha256, 64)
    generator = torch.Generator().manual_seed(0)
    documents = [
        Document(
            str(number),
            torch.randint(0, 256, (length,), generator=generator).tolist(),
            [0] * 2 + [1] * (length - 2),
            is_holdout=False,
        )
        for number, length in enumerate(LENGTHS)
    ]
    artifact = tmp_path / "made-tokens"
    artifact.mkdir()
    save_tokens(artifact, documents, origin)
    return artifact


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(hidden_states, "SHARD_BYTES", 20 * (4 * 32 * 4 + 4))


def files(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.usefixtures("small_shards")
def test_every_token_has_its_streams_in_the_order_of_the_tokens(values, run_step, verifier, tokens):
    output, told = run_step(STEP, values, verifier=verifier, tokens=tokens)
    states, dataset = HiddenStates.open(output), TokenDataset.open(tokens)
    assert len(states.record["shards"]) > 2
    assert (states.record["layer_ids"], states.record["last"]) == ([0, 1, 2], "pre_norm")
    model = VerifierModel.load(verifier_directory(verifier), "float32", aux_layers=(0, 1, 2))
    for number in range(len(dataset)):
        ids, loss_mask = dataset.document(number)
        out = model.forward(ids[None], None, torch.tensor([0]), logits="all")
        aux, last, argmax = states.document(number)
        torch.testing.assert_close(aux, out.aux[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last, out.last[0], rtol=1e-4, atol=1e-5)
        assert loss_mask.any()
        assert not loss_mask.all()
        own = out.logits[0].argmax(-1).tolist()
        answered = [*loss_mask[1:].tolist(), False]
        assert argmax.tolist() == [token if mine else NOT_TAKEN for token, mine in zip(own, answered, strict=True)]
    assert told.progressed[-1] == (sum(LENGTHS), sum(LENGTHS), "tokens")


@pytest.mark.usefixtures("small_shards")
def test_a_kill_costs_only_the_shard_that_was_open(values, run_step, verifier, tokens, monkeypatch, tmp_path):
    whole, _ = run_step(STEP, values, verifier=verifier, tokens=tokens)
    wanted = files(whole)
    whole.rename(tmp_path / "whole")
    publish = hidden_states_writer().publish
    published = []

    def dies(writer, folder):
        if published:
            raise KeyboardInterrupt
        published.append(publish(writer, folder))

    monkeypatch.setattr(hidden_states_writer(), "publish", dies)
    with pytest.raises(KeyboardInterrupt):
        run_step(STEP, values, verifier=verifier, tokens=tokens)
    output = tmp_path / STEP.name
    assert [file.name for file in output.iterdir()] == ["states-00000.safetensors"]
    before = (output / "states-00000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(hidden_states_writer(), "publish", publish)
    output, told = run_step(STEP, values, verifier=verifier, tokens=tokens)
    assert files(output) == wanted
    assert (output / "states-00000.safetensors").stat().st_mtime_ns == before
    assert told.progressed[-1][1] < sum(LENGTHS)


@pytest.mark.usefixtures("small_shards")
def test_a_truncated_shard_is_made_again(values, run_step, verifier, tokens):
    output, _ = run_step(STEP, values, verifier=verifier, tokens=tokens)
    wanted = files(output)
    shard = output / "states-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    output, _ = run_step(STEP, values, verifier=verifier, tokens=tokens)
    assert files(output) == wanted


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_states_are_kept_in_the_type_asked_for(values, run_step, verifier, tokens, dtype):
    values["data"]["hidden_states"]["dtype"] = dtype
    output, _ = run_step(STEP, values, verifier=verifier, tokens=tokens)
    aux, last, _ = HiddenStates.open(output).document(0)
    assert aux.dtype == last.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("key", ["tokenizer_sha256", "chat_template_sha256"])
def test_tokens_of_another_tokenizer_or_template_are_refused(values, run_step, verifier, tokens, key):
    record = json.loads((tokens / "tokens.json").read_text())
    (tokens / "tokens.json").write_text(json.dumps(record | {key: "0" * 64}))
    what = key.removesuffix("_sha256").replace("_", " ")
    with pytest.raises(ArtifactMismatch, match=f"made with the {what} 000000000000"):
        run_step(STEP, values, verifier=verifier, tokens=tokens)


def hidden_states_writer():
    from speculators.data.hidden_states import ShardWriter

    return ShardWriter


@pytest.mark.usefixtures("small_shards")
def test_two_machines_write_what_one_would(values, run_step, verifier, tokens):
    output, _ = run_step(STEP, values, verifier=verifier, tokens=tokens)
    expected = files(output)
    for file in output.iterdir():
        file.unlink()
    run_step(STEP, values, Nodes(2, 1), verifier=verifier, tokens=tokens)
    assert list(files(output)) == sorted(name for name in expected if name.endswith("safetensors"))[1::2]
    run_step(STEP, values, Nodes(2, 0), verifier=verifier, tokens=tokens)
    assert files(output) == expected
