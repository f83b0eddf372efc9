"""Tokens: the verifier's ids as it wrote them, other conversations as the template renders them."""

import json
from types import SimpleNamespace

import pytest

from speculators.data.conversations import Conversation, Message, write_conversations
from speculators.data.tokens import TokenDataset
from speculators.errors import StepError
from speculators.steps import tokens
from speculators.verifiers.source import verifier_directory
from speculators.verifiers.tokenizer import ChatTokenizer


def step(regenerate):
    (found,) = tokens.steps(SimpleNamespace(data=SimpleNamespace(regenerate=regenerate)))
    return found


def answer(identity, prompt_ids, response_ids, split="train", sample=0):
    return {
        "id": identity,
        "messages": [],
        "split": split,
        "prompt_token_ids": prompt_ids,
        "response_token_ids": response_ids,
        "sample": sample,
    }


@pytest.fixture
def answers(tmp_path):
    def write(*shards):
        artifact = tmp_path / "made-answers"
        artifact.mkdir()
        for number, shard in enumerate(shards):
            (artifact / f"answers-{number:05d}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in shard))
        return artifact

    return write


def test_what_the_verifier_wrote_is_never_tokenised_again(make_recipe, run_step, verifier, answers):
    # No tokenizer would give 280, an unused token, for any text.
    made = answers([answer("a", [257, 104], [280, 105, 258])], [answer("b", [257], [106], "holdout", sample=2)])
    output, _ = run_step(step(regenerate=True), make_recipe(), verifier=verifier, answers=made)
    dataset = TokenDataset.open(output)
    assert [part.tolist() for part in dataset.document(0)] == [
        [257, 104, 280, 105, 258],
        [False, False, True, True, True],
    ]
    assert dataset.ids == ("a", "b/2")
    assert dataset.is_holdout.tolist() == [False, True]


def test_origin_says_what_the_tokens_were_made_with(make_recipe, run_step, verifier, answers):
    made = answers([answer("a", [257, 104], [105, 258])])
    output, _ = run_step(step(regenerate=True), make_recipe(), verifier=verifier, answers=made)
    tokenizer, origin = ChatTokenizer.load(verifier_directory(verifier)), TokenDataset.open(output).origin
    assert (origin.vocab_size, origin.special_ids, origin.max_length) == (300, (257, 258), 256)
    assert origin.tokenizer_sha256 == tokenizer.tokenizer_sha256
    assert origin.chat_template_sha256 == tokenizer.chat_template_sha256


def test_long_documents_are_cut_and_those_without_loss_left_out(make_recipe, run_step, verifier, answers):
    made = answers(
        [answer("long", [257] * 4, [105] * 9), answer("no room", [257] * 8, [105]), answer("fits", [257], [105])]
    )
    output, told = run_step(step(regenerate=True), make_recipe(data__max_length=8), verifier=verifier, answers=made)
    dataset = TokenDataset.open(output)
    assert (dataset.ids, dataset.lengths.tolist()) == (("long", "fits"), [8, 2])
    assert told.messages == ["left out 1 conversations without an assistant's token to learn from"]


def test_greedy_answers_are_known_to_be_the_verifier_s_choices(make_recipe, run_step, verifier, answers):
    lines = [answer("a", [257, 104], [105, 258]), answer("b", [257], [106], "holdout"), answer("c", [1] * 8, [2])]
    made = answers(lines)
    for temperature, expected in ((1.0, [4, 1]), (0.0, [2, 1])):
        values = make_recipe(data__max_length=8, data__regenerate__temperature=temperature)
        output, _ = run_step(step(regenerate=True), values, verifier=verifier, answers=made)
        assert TokenDataset.open(output).greedy_from.tolist() == expected


def test_training_on_all_takes_the_prompt_as_well(make_recipe, run_step, verifier, answers):
    made = answers([answer("a", [257, 104], [105])])
    output, _ = run_step(step(regenerate=True), make_recipe(data__train_on="all"), verifier=verifier, answers=made)
    assert TokenDataset.open(output).loss_mask.tolist() == [True] * 3


@pytest.fixture
def prompts(tmp_path):
    artifact = tmp_path / "made-prompts"
    artifact.mkdir()
    talk = (Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "Bye"), Message("assistant", "Ok"))
    asked = (Message("user", "Unanswered"),)
    write_conversations(
        artifact / "prompts.jsonl",
        [Conversation("talk", talk, "train", None, "test"), Conversation("asked", asked, "train", None, "test")],
    )
    return artifact


def test_the_datas_own_answers_are_rendered_and_every_turn_counts(make_recipe, run_step, verifier, prompts):
    output, _ = run_step(step(regenerate=None), make_recipe(), verifier=verifier, prompts=prompts)
    input_ids, loss_mask = TokenDataset.open(output).document(0)
    tokenizer = ChatTokenizer.load(verifier_directory(verifier))
    assert tokenizer.decode(input_ids[loss_mask].tolist(), skip_special_tokens=False) == "Yo<|im_end|>Ok<|im_end|>"
    assert TokenDataset.open(output).ids == ("talk",)


def test_a_template_that_hides_turns_costs_the_conversation_and_says_so(
    make_recipe, run_step, verifier, prompts, tmp_path
):
    import shutil

    shutil.copytree(verifier, tmp_path / "other")
    template = tmp_path / "other" / "model" / "chat_template.jinja"
    template.write_text("{{ messages | length }}" + template.read_text())
    with pytest.raises(StepError, match=r"no conversation is left to train on[\s\S]*talk: the chat template renders"):
        run_step(step(regenerate=None), make_recipe(), verifier=tmp_path / "other", prompts=prompts)
