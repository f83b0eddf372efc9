"""What was accepted between two readings of a server's counters, and nothing of before or after."""

from __future__ import annotations

from speculators.evaluation.served_acceptance import served_acceptance


def metrics(drafts: int, *accepted: int) -> str:
    lines = [f'vllm:spec_decode_num_drafts_total{{model_name="m"}} {drafts}']
    lines += [
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{model_name="m",position="{position}"}} {count}'
        for position, count in enumerate(accepted)
    ]
    return "\n".join(lines)


def test_only_what_came_in_between_counts():
    assert served_acceptance(metrics(10, 9, 9, 9), metrics(30, 19, 14, 9)) == {
        "acceptance_length": 1 + 15 / 20,
        "positions": [10 / 20, 5 / 10, 0.0],
    }


def test_a_position_that_no_pass_came_to_has_no_rate():
    assert served_acceptance(metrics(0), metrics(4, 0, 0)) == {"acceptance_length": 1.0, "positions": [0.0, None]}


def test_a_server_without_a_draft_has_no_acceptance():
    assert served_acceptance("", "vllm:prompt_tokens_total 5") == {"acceptance_length": None, "positions": None}
