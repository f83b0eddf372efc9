"""The assistant's tokens are found exactly, whatever the template, and a template that hides them is refused."""

import shutil

import pytest

from speculators.errors import UsageError
from speculators.verifiers.tokenizer import ChatTokenizer

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello you."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Farewell!"},
]
# Thoughts are shown in the last answer only, as several reasoning models' templates do.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The number of messages stands at the very beginning: no rendering is the beginning of a longer one.
COUNTING = "{{ messages | length }}" + FORGETFUL
# Answers end with nothing at all.
ENDLESS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def with_template(tiny, tmp_path):
    def load(template: str) -> ChatTokenizer:
        shutil.copytree(tiny, tmp_path / "model", dirs_exist_ok=True)
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
        return ChatTokenizer.load(tmp_path / "model")

    return load


def written(tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> str:
    ids, mask = tokenizer.render_with_mask(messages)
    assert ids == tokenizer.render(messages)
    return tokenizer.decode([token for token, mine in zip(ids, mask, strict=True) if mine], skip_special_tokens=False)


def test_every_turn_of_the_assistant_counts_with_its_stop_token_and_nothing_else(tiny):
    assert written(ChatTokenizer.load(tiny), TALK) == "Hello you.<|im_end|>Farewell!<|im_end|>"


def test_a_template_that_forgets_thoughts_still_shows_every_turn(with_template):
    assert written(with_template(FORGETFUL), TALK) == "Hello you.<|im_end|><think></think>Farewell!<|im_end|>"


def test_turns_without_a_stop_token_end_where_the_rendering_does(with_template):
    assert written(with_template(ENDLESS), TALK) == "Hello you.Farewell!"


def test_a_template_that_rewrites_the_past_is_refused_by_turn(with_template):
    with pytest.raises(UsageError, match=r"what comes before turn 3 \(assistant\) differently"):
        with_template(COUNTING).render_with_mask(TALK)


def test_training_on_all_masks_nothing_out(with_template):
    ids, mask = with_template(COUNTING).render_with_mask(TALK, train_on="all")
    assert mask == [1] * len(ids)


def test_the_opening_of_a_users_turn_is_what_comes_before_their_text(tiny):
    tokenizer = ChatTokenizer.load(tiny)
    assert tokenizer.decode(tokenizer.user_opening(), skip_special_tokens=False) == "<|im_start|>user\n"
    assert (
        tokenizer.render([{"role": "user", "content": "Hi"}])[: len(tokenizer.user_opening())]
        == tokenizer.user_opening()
    )


def test_stop_and_special_tokens_are_those_of_template_and_generation_config(tiny):
    tokenizer = ChatTokenizer.load(tiny)
    assert tokenizer.stop_ids == (258,)
    assert tokenizer.special_ids == (257, 258)
    assert tokenizer.has_control_tokens("a <|im_start|> b")
    assert not tokenizer.has_control_tokens("a b")


def test_another_template_has_another_digest_and_the_same_tokenizer_digest(tiny, with_template):
    one, other = ChatTokenizer.load(tiny), with_template(FORGETFUL)
    assert one.tokenizer_sha256 == other.tokenizer_sha256
    assert one.chat_template_sha256 != other.chat_template_sha256


def test_a_tokenizer_without_template_is_refused(with_template, tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="has no chat template"):
        ChatTokenizer.load(tmp_path / "bare")
