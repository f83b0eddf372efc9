"""Where loss is taken in the ways that families write conversations: thoughts, tool calls, channels, ends of turns.

Each template is a short one that differs from ChatML in what its family differs in.
"""

import shutil

import pytest
from transformers import AutoTokenizer

from speculators.verifiers.tokenizer import ChatTokenizer

TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello.", "reasoning_content": "Greet."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Farewell!", "reasoning_content": "Part."},
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLING = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]

# Qwen3: thoughts are kept after the last question only; tools answer inside a user's turn.
QWEN = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% set last = (messages | selectattr('role', 'equalto', 'user') | list | length) %}{% set seen = namespace(n=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set seen.n = seen.n + 1 %}{% endif %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and seen.n == last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# DeepSeek-R1: the prompt opens the thoughts, which no later rendering has.
R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|A|>{{ m.content }}<|eos|>"
    "{% else %}<|U|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|A|><think>\n{% endif %}"
)
# gpt-oss: thoughts and answer are parts of one turn, whose last token is another while it is the last one.
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if loop.last and m.reasoning_content %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.reasoning_content }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# GLM: an answer ends where the next turn opens.
GLM = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Gemma: the assistant is called model.
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Mistral: users' turns stand in brackets, answers end with the end of sequence.
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}<|eos|>{% endif %}{% endfor %}"
)


@pytest.fixture
def with_template(tiny, tmp_path):
    """A tokenizer with a template and further control tokens, of which the last ends a sequence."""

    def load(template: str, *tokens: str) -> ChatTokenizer:
        shutil.copytree(tiny, tmp_path / "model", dirs_exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        if tokens:
            tokenizer.eos_token = tokens[-1]
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "model")
        return ChatTokenizer.load(tmp_path / "model")

    return load


def learnt(tokenizer: ChatTokenizer, messages, tools=()) -> str:
    """What loss is taken on, with `·` where something else stands between."""
    ids, mask = tokenizer.render_with_mask(messages, tools=tools)
    assert ids == tokenizer.render(messages, tools=tools)
    parts, run = [], []
    for token, mine in [*zip(ids, mask, strict=True), (0, 0)]:
        if mine:
            run.append(token)
        elif run:
            parts.append(tokenizer.decode(run, skip_special_tokens=False))
            run = []
    return "·".join(parts)


def test_thoughts_are_learnt_where_the_template_keeps_them(with_template):
    expected = "Hello.<|im_end|>·<think>\nPart.\n</think>\n\nFarewell!<|im_end|>"
    assert learnt(with_template(QWEN), TALK) == expected


def test_tool_calls_are_the_assistants_and_results_are_not(with_template):
    tokenizer = with_template(QWEN)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    found = learnt(tokenizer, CALLING, TOOLS)
    assert found == f"<think>\n\n</think>\n\n{call}<|im_end|>·<think>\n\n</think>\n\nIt is 3.<|im_end|>"
    assert tokenizer.decode(tokenizer.render(CALLING, tools=TOOLS)).startswith("system\n[{")


def test_thoughts_that_the_prompt_opens_and_the_past_forgets_do_not_hide_the_answers(with_template):
    tokenizer = with_template(R1, "<|U|>", "<|A|>", "<|eos|>")
    assert learnt(tokenizer, TALK) == "Hello.<|eos|>·Farewell!<|eos|>"
    assert tokenizer.decode(tokenizer.render(TALK[:1], add_generation_prompt=True)).endswith("<think>\n")


def test_channels_are_parts_of_one_turn(with_template):
    marks = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    tokenizer = with_template(HARMONY, *marks)
    expected = (
        "<|channel|>final<|message|>Hello.<|end|>·"
        "<|channel|>analysis<|message|>Part.<|end|><|start|>assistant<|channel|>final<|message|>Farewell!<|return|>"
    )
    assert learnt(tokenizer, TALK) == expected
    ends = {token: tokenizer.tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|return|>")}
    assert ends["<|return|>"] in tokenizer.stop_ids
    assert ends["<|end|>"] not in tokenizer.stop_ids, "an answer would stop after its thoughts"


def test_an_end_that_is_no_channels_end_stops_an_answer(with_template):
    tokenizer = with_template(QWEN.replace("<|im_end|>", "<|end|>"), "<|end|>", "<|eos|>")
    assert tokenizer.tokenizer.convert_tokens_to_ids("<|end|>") in tokenizer.stop_ids


def test_a_model_that_stops_by_opening_the_next_turn_learns_that_token(with_template):
    assert learnt(with_template(GLM, "<|assistant|>", "<|user|>"), TALK) == "Hello.<|user|>·Farewell!"


def test_the_name_of_the_role_is_the_templates_business(with_template):
    tokenizer = with_template(GEMMA, "<start_of_turn>", "<end_of_turn>", "<|eos|>")
    assert learnt(tokenizer, TALK) == "Hello.<end_of_turn>·Farewell!<end_of_turn>"
    assert tokenizer.tokenizer.convert_tokens_to_ids("<end_of_turn>") in tokenizer.stop_ids


def test_turns_without_an_opening_of_their_own_are_found(with_template):
    assert learnt(with_template(MISTRAL, "[INST]", "[/INST]", "<|eos|>"), TALK) == "Hello.<|eos|>·Farewell!<|eos|>"
