"""The random verifier is a whole checkpoint: it loads, it reads any text byte for byte, it ends its turns."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from speculators.errors import UsageError
from speculators.verifiers.random_model import check_random_shape
from speculators.verifiers.tokenizer import ChatTokenizer


def test_any_text_survives_the_byte_tokenizer(tiny):
    tokenizer = ChatTokenizer.load(tiny)
    text = "Grüße, 世界 — 12 345!\n\t\x00end"
    ids = tokenizer.tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_it_ends_turns_with_readable_text(tiny):
    tokenizer, model = ChatTokenizer.load(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    prompt = torch.tensor([tokenizer.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)] * 16)
    torch.manual_seed(0)
    answers = model.generate(prompt, do_sample=True, max_new_tokens=128)[:, prompt.shape[1] :]
    ended = (answers == tokenizer.stop_ids[0]).any(dim=1)
    assert ended.float().mean() > 0.5
    text = tokenizer.decode(answers[answers < 256].tolist())
    assert sum(character.isalpha() or character == " " for character in text) / len(text) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 259}, "needs at least 260"),
        ({"attention_heads": 5}, "must be an even multiple of `attention_heads`"),
        ({"key_value_heads": 3}, "must be a multiple of `key_value_heads`"),
    ],
)
def test_impossible_shapes_are_refused_before_anything_is_made(shape, change, message):
    from types import SimpleNamespace

    with pytest.raises(UsageError, match=message):
        check_random_shape(SimpleNamespace(**(vars(shape) | change)))
