"""The prompts that a draft is judged on, by the name of their suite."""

from __future__ import annotations

from pathlib import Path

from speculators.data.conversations import Conversation, read_conversations
from speculators.errors import UsageError
from speculators.recipe.shapes.eval import SUITES


def suite(name: str, prompts: Path, limit: int | None = None) -> list[Conversation]:
    """The prompts of suite `name`, each ending with the user's turn; `prompts` is the run's prompts artifact.

    Of more than `limit` prompts, `limit` are taken at even distances, so that every part of the suite has its share.
    Raises UsageError for an unknown suite and for one without prompts.
    """
    if name not in SUITES:
        raise UsageError(f"there is no suite {name!r} in eval.acceptance.suites; allowed: {', '.join(SUITES)}")
    found = [one for one in read_conversations(prompts / "prompts.jsonl") if one.split == "holdout"]
    asked = [prompt for prompt in (one.as_prompt() for one in found) if prompt.messages]
    if not asked:
        raise UsageError(
            "the suite `holdout` is empty: no prompt was held out; set data.holdout above 0, or use data whose rows "
            "have a `split`"
        )
    if limit is None or limit >= len(asked):
        return asked
    return [asked[number * len(asked) // limit] for number in range(limit)]
