"""Rows of any usual shape become one form; splits and ids never depend on what else is in the data."""

import json
from pathlib import Path

import pytest

from speculators.data.conversations import (
    Conversation,
    Message,
    assign_split,
    conversation,
    read_conversations,
    read_rows,
    without_repeats,
    write_conversations,
)
from speculators.errors import UsageError


def read(row, holdout=0.0):
    return conversation(row, source="test", holdout=holdout)


ASKED = Message("user", "Why?")
ANSWERED = (ASKED, Message("assistant", "Because."))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Why?"}, (ASKED,)),
        ({"text": "Why?"}, (ASKED,)),
        ({"prompt": "Why?", "response": "Because."}, ANSWERED),
        ({"instruction": "Why?", "input": "", "output": "Because."}, ANSWERED),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            (Message("user", "Add\n\n1 2"), Message("assistant", "3")),
        ),
        (
            {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
            ANSWERED,
        ),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}, ANSWERED),
        ({"conversations": [{"role": "user", "content": "Why?"}]}, (ASKED,)),
        ({"system": "Be brief.", "prompt": "Why?"}, (Message("system", "Be brief."), ASKED)),
        (
            {"conversations": [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Why?"}]},
            (ASKED,),
        ),
        (
            {"messages": [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}]},
            (Message("user", "A\n\nB"),),
        ),
    ],
)
def test_every_usual_shape_is_recognised_by_its_columns(row, expected):
    assert read(row).messages == expected


@pytest.mark.parametrize(
    "row", [{"prompt": "  "}, {"messages": []}, {"messages": [{"role": "system", "content": "x"}]}]
)
def test_rows_in_which_the_user_says_nothing_are_left_out(row):
    assert read(row) is None


def test_unknown_columns_are_listed_with_what_would_do():
    with pytest.raises(UsageError, match=r"test has the columns `question`, `answer`; expected `messages`"):
        read({"question": "Why?", "answer": "Because."})


def test_an_unknown_role_is_named():
    with pytest.raises(UsageError, match="the role 'narrator'; known roles: human, user"):
        read({"messages": [{"role": "narrator", "content": "x"}]})


def test_a_rows_own_id_category_and_split_win():
    found = read({"id": "a-1", "prompt": "Why?", "category": "deep", "split": "holdout"}, holdout=0.0)
    assert (found.id, found.category, found.split) == ("a-1", "deep", "holdout")
    assert read({"prompt": "Why?", "split": "train"}, holdout=1.0).split == "train"
    assert read({"prompt": "Why?", "split": "test"}).split == "holdout"


def test_ids_are_stable_and_differ_by_content():
    one, same, other = read({"prompt": "Why?"}), read({"prompt": "Why?"}), read({"prompt": "How?"})
    assert one.id == same.id == "d60ffbcae18616ca"
    assert other.id != one.id


def test_the_holdout_share_is_met_and_each_id_keeps_its_side():
    ids = [f"row-{number}" for number in range(4000)]
    held_out = {identity for identity in ids if assign_split(identity, 0.1) == "holdout"}
    assert 0.08 < len(held_out) / len(ids) < 0.12
    assert held_out <= {identity for identity in ids if assign_split(identity, 0.2) == "holdout"}
    assert {assign_split(identity, 0.0) for identity in ids} == {"train"}
    assert {assign_split(identity, 1.0) for identity in ids} == {"holdout"}


def made(identity: str, text: str, split: str = "train") -> Conversation:
    return Conversation(identity, (Message("user", text),), split, None, "test")


def test_nothing_held_out_is_trained_on_in_other_letters():
    kept = without_repeats([made("a", "Tell me  a JOKE\n"), made("b", "tell me a joke", "holdout"), made("c", "Other")])
    assert [item.id for item in kept] == ["b", "c"]


def test_one_id_with_two_contents_becomes_two_conversations():
    kept = without_repeats([made("a", "One"), made("a", "Two"), made("a", "One")])
    assert [item.messages[0].content for item in kept] == ["One", "Two"]
    assert len({item.id for item in kept}) == 2


def test_one_id_and_text_with_other_tools_becomes_two_conversations():
    row = {"id": "a", "prompt": "What is 1 + 2?"}
    rows = [row, row | {"tools": [{"name": "add"}]}, row | {"tools": [{"name": "sum"}]}, row]
    kept = without_repeats([read(one) for one in rows])
    assert [item.tools for item in kept] == [(), ({"name": "add"},), ({"name": "sum"},)]
    assert len({item.id for item in kept}) == 3


def test_a_prompt_ends_with_the_user():
    talk = Conversation("a", (*ANSWERED, Message("user", "Oh?"), Message("assistant", "Yes.")), "train", None, "test")
    assert talk.as_prompt().messages == (*ANSWERED, Message("user", "Oh?"))


def test_conversations_survive_writing(tmp_path):
    talks = [made("a", "Ünï\ncode \u2028 line"), made("b", "x", "holdout")]
    write_conversations(tmp_path / "prompts.jsonl", talks)
    assert read_conversations(tmp_path / "prompts.jsonl") == talks


ROWS = [{"prompt": "a", "id": "1"}, {"prompt": "b", "id": "2"}]


def write(file: Path) -> None:
    if file.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(ROWS))
    else:
        file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_files_of_each_kind_give_the_same_rows(tmp_path, name):
    write(tmp_path / name)
    assert list(read_rows(tmp_path / name)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "a,b", r"ends in '\.csv'; prompts are read from \.jsonl, \.json or \.parquet"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt"', r"rows\.jsonl:2 is not JSON"),
        ("rows.jsonl", "[1]", r"rows\.jsonl, row 1 is not a JSON object"),
    ],
)
def test_files_that_cannot_be_read_say_where(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        list(read_rows(tmp_path / name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*gone\.jsonl"):
        list(read_rows(tmp_path / "gone.jsonl"))


TOOL_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def tool_row() -> dict:
    return {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "2?"}]},
            {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL], "reasoning": "Add."},
            {"role": "tool", "content": "3", "name": "add"},
            {"role": "tool", "content": "4", "name": "add"},
            {"role": "assistant", "content": "It is 3."},
        ],
        "tools": '[{"name": "add"}]',
    }


def test_thoughts_calls_and_results_survive_the_normal_form() -> None:
    item = conversation(tool_row(), source="s", holdout=0.0)
    assert item is not None
    assert [turn.role for turn in item.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert item.messages[0].content == "1 + 2?"
    assert item.messages[1].beside == {"tool_calls": [TOOL_CALL], "reasoning_content": "Add."}
    assert "Add." in item.messages[1].whole
    assert item.tools == ({"name": "add"},)
    assert Conversation.from_json(json.loads(json.dumps(item.to_json()))) == item


def test_a_prompt_may_end_with_what_a_tool_answered() -> None:
    item = conversation(tool_row(), source="s", holdout=0.0)
    assert item is not None
    assert item.as_prompt().messages == item.messages[:-1]


def test_tools_and_thoughts_are_part_of_what_a_conversation_is() -> None:
    plain = {"messages": [{"role": "user", "content": "Hi"}]}
    ids = {
        conversation(row, source="s", holdout=0.0).id  # type: ignore[union-attr]
        for row in (plain, plain | {"tools": [{"name": "add"}]}, plain | {"tools": None}, plain | {"tools": ""})
    }
    assert len(ids) == 2


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_what_is_neither_text_nor_an_image_is_refused_rather_than_dropped(kind: str) -> None:
    row = {"messages": [{"role": "user", "content": [{"type": kind, "url": "x"}]}]}
    with pytest.raises(UsageError, match=f"has a part of the type '{kind}'; read are text, image and image_url"):
        conversation(row, source="s", holdout=0.0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": [1, 2]}, "a turn in test lacks `role` or `content`"),
        ({"conversations": ["from"]}, "a turn in test lacks `role` or `content`"),
        ({"messages": [{"role": "user", "content": 7}]}, "the content of a turn in test is of the type int"),
        (
            {"messages": [{"role": "user", "content": {"type": "image", "path": "a.png"}}]},
            "is of the type dict; expected",
        ),
        ({"conversations": [{"from": "human", "value": 0.5}]}, "is of the type float"),
    ],
)
def test_turns_that_are_neither_text_nor_parts_are_refused_by_name(row, reason) -> None:
    with pytest.raises(UsageError, match=reason):
        read(row)
