"""Answers are the verifier's own, held-out ones greedy, each with a seed of its own, and shards survive a kill."""

import json
from types import SimpleNamespace

import pytest
import torch

from speculators.data.conversations import Conversation, Message, write_conversations
from speculators.data.journal import Journal
from speculators.pipeline.step import Nodes, Scope
from speculators.steps import answers
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer

(STEP,) = answers.steps(SimpleNamespace(data=SimpleNamespace(regenerate=True)))


@pytest.fixture
def prompts(tmp_path):
    """Ten prompts of different lengths, two of them held out, one with an answer that is to be replaced."""
    talks = [
        Conversation(
            f"p{n}", (Message("user", "word " * (n + 1)),), "holdout" if n in (3, 8) else "train", None, "test"
        )
        for n in range(10)
    ]
    talks.append(Conversation("old", (Message("user", "Hi"), Message("assistant", "OLD")), "train", "chat", "test"))
    artifact = tmp_path / "made-prompts"
    artifact.mkdir()
    write_conversations(artifact / "prompts.jsonl", talks)
    return artifact


def answered(output) -> list[dict]:
    return [json.loads(line) for file in sorted(output.glob("*.jsonl")) for line in file.open(encoding="utf-8")]


def test_every_prompt_is_answered_by_the_verifier_itself(make_recipe, run_step, verifier, prompts):
    output, told = run_step(STEP, make_recipe(), verifier=verifier, prompts=prompts)
    found = answered(output)
    assert sorted(item["id"] for item in found) == sorted(["old", *(f"p{n}" for n in range(10))])
    tokenizer = ChatTokenizer.load(verifier_directory(verifier))
    for item in found:
        assert [message["role"] for message in item["messages"]] == ["user", "assistant"]
        assert item["prompt_token_ids"] == tokenizer.render(item["messages"][:1], add_generation_prompt=True)
        assert item["messages"][1]["content"] == tokenizer.decode(item["response_token_ids"])
        stopped = item["response_token_ids"][-1] in tokenizer.stop_ids
        assert item["finish_reason"] == ("stop" if stopped else "length")
        assert len(item["response_token_ids"]) <= 24
    assert "OLD" not in json.dumps(found)
    assert told.progressed[-1][:2] == (sum(len(item["response_token_ids"]) for item in found),) * 2


def test_held_out_answers_are_greedy_whatever_the_temperature(make_recipe, run_step, verifier, prompts):
    from transformers import AutoModelForCausalLM

    output, _ = run_step(STEP, make_recipe(data__regenerate__samples_per_prompt=2), verifier=verifier, prompts=prompts)
    model = AutoModelForCausalLM.from_pretrained(verifier_directory(verifier))
    held_out = [item for item in answered(output) if item["split"] == "holdout"]
    assert [item["sample"] for item in held_out] == [0, 0]
    for item in held_out:
        prompt = torch.tensor([item["prompt_token_ids"]])
        plain = model.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :]
        assert item["response_token_ids"] == plain.tolist()


def test_samples_of_one_prompt_differ_and_come_again(make_recipe, run_step, verifier, prompts):
    values = make_recipe(data__regenerate__samples_per_prompt=3)
    output, _ = run_step(STEP, values, verifier=verifier, prompts=prompts)
    first = {(item["id"], item["sample"]): item["response_token_ids"] for item in answered(output)}
    assert len({tuple(first["p0", sample]) for sample in range(3)}) == 3
    for file in output.iterdir():
        file.unlink()
    values["verifier"]["engine"]["batch_tokens"] = 64  # one at a time
    output, _ = run_step(STEP, values, verifier=verifier, prompts=prompts)
    assert {(item["id"], item["sample"]): item["response_token_ids"] for item in answered(output)} == first


def test_greedy_samples_would_all_be_the_same_and_are_made_once(make_recipe, run_step, verifier, prompts):
    values = make_recipe(data__regenerate__samples_per_prompt=3, data__regenerate__temperature=0.0)
    output, _ = run_step(STEP, values, verifier=verifier, prompts=prompts)
    assert len(answered(output)) == 11


def test_a_kill_costs_only_the_answers_that_were_being_written(
    make_recipe, run_step, verifier, prompts, monkeypatch, tmp_path
):
    monkeypatch.setattr(answers, "SHARD_ANSWERS", 3)
    whole, _ = run_step(STEP, make_recipe(), verifier=verifier, prompts=prompts)
    expected = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert len(expected) == 4
    for file in whole.iterdir():
        file.unlink()

    publish, published = answers._publish, []

    def killed(shard, file):
        publish(shard, file)
        published.append(file.name)
        if len(published) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(answers, "_publish", killed)
    with pytest.raises(KeyboardInterrupt):
        run_step(STEP, make_recipe(), verifier=verifier, prompts=prompts)
    finished = {file.name: file.stat().st_mtime_ns for file in whole.glob("*.jsonl")}
    assert len(finished) == 2
    (journal,) = whole.glob(answers.JOURNALS)
    known = {record["id"] for record in Journal(journal).records()}
    assert len(known) >= 6
    monkeypatch.setattr(answers, "_publish", publish)
    asked, request = [], answers._request

    def noted(question, *rest):
        asked.append(question["id"])
        return request(question, *rest)

    monkeypatch.setattr(answers, "_request", noted)
    output, _ = run_step(STEP, make_recipe(), verifier=verifier, prompts=prompts)
    assert known.isdisjoint(asked), "no finished answer is asked for again"
    assert {file.name: file.read_bytes() for file in output.iterdir()} == expected
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == finished


def test_two_machines_write_what_one_would_whichever_is_lost(make_recipe, run_step, verifier, prompts, monkeypatch):
    monkeypatch.setattr(answers, "SHARD_ANSWERS", 3)
    output, _ = run_step(STEP, make_recipe(), verifier=verifier, prompts=prompts)
    expected = {file.name: file.read_bytes() for file in output.iterdir()}
    for file in output.iterdir():
        file.unlink()

    run_step(STEP, make_recipe(), Nodes(2, 1), verifier=verifier, prompts=prompts)
    assert sorted(file.name for file in output.glob("*.jsonl")) == sorted(expected)[1::2]
    run_step(STEP, make_recipe(), Nodes(2, 0), verifier=verifier, prompts=prompts)
    assert {file.name: file.read_bytes() for file in output.iterdir()} == expected

    for file in output.iterdir():
        file.unlink()
    publish = answers._publish

    def lost(shard, file):
        raise KeyboardInterrupt

    monkeypatch.setattr(answers, "_publish", lost)
    with pytest.raises(KeyboardInterrupt):
        run_step(STEP, make_recipe(), Nodes(2, 1), verifier=verifier, prompts=prompts)
    monkeypatch.setattr(answers, "_publish", publish)
    (journal,) = output.glob(answers.JOURNALS)
    known, asked, request = {record["id"] for record in Journal(journal).records()}, [], answers._request
    assert known

    def noted(question, *rest):
        asked.append(question["id"])
        return request(question, *rest)

    monkeypatch.setattr(answers, "_request", noted)
    run_step(STEP, make_recipe(), Nodes(2, 0), verifier=verifier, prompts=prompts)
    assert known.isdisjoint(asked), "the first machine takes over what the other had finished"
    assert {file.name: file.read_bytes() for file in output.iterdir()} == expected


def test_prompts_that_leave_no_room_for_an_answer_are_left_out(make_recipe, run_step, verifier, tmp_path):
    artifact = tmp_path / "long"
    artifact.mkdir()
    talks = [
        Conversation(name, (Message("user", text),), "train", None, "test")
        for name, text in (("long", "x" * 3000), ("short", "x"))
    ]
    write_conversations(artifact / "prompts.jsonl", talks)
    output, told = run_step(STEP, make_recipe(), verifier=verifier, prompts=artifact)
    assert [item["id"] for item in answered(output)] == ["short"]
    assert told.messages == ["left out 1 prompts of 2048 tokens or more"]


def test_keeping_the_datas_own_answers_takes_the_step_out_of_the_graph():
    assert answers.steps(SimpleNamespace(data=SimpleNamespace(regenerate=None))) == ()


def test_the_estimate_grows_with_prompts_and_weights(make_recipe, as_view):
    config = as_view(STEP, make_recipe())
    one = STEP.estimate(Scope(config=config, facts={"prompts": 100.0, "weight_bytes": 4e8}))
    more = STEP.estimate(Scope(config=config, facts={"prompts": 200.0, "weight_bytes": 8e8}))
    assert more.seconds == pytest.approx(4 * one.seconds)
    assert more.disk == 2 * one.disk
    assert STEP.estimate(Scope(config=config)).seconds is None
