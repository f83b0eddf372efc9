"""The prompts that a converted draft is judged on: those that came with us and that no training of ours reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speculators.pipeline.step import Context, Step, View
from speculators.shipped import shipped_folder

if TYPE_CHECKING:
    from speculators.recipe.shapes.recipe import Recipe


def run(context: Context) -> None:
    """Write `prompts.jsonl`, as the step of the same name does for a draft that is trained."""
    from speculators.data.conversations import conversation, read_rows, write_conversations

    read = (
        conversation(row, source=f"file:{_file().name}", holdout=0.0, where=f"{_file().name}, row {number}")
        for number, row in enumerate(read_rows(_file()), start=1)
    )
    kept = [one for one in read if one is not None and one.split == "holdout"]
    context.report.message(f"{len(kept)} prompts, shipped with speculators")
    write_conversations(context.output / "prompts.jsonl", kept)


def external(config: View) -> Mapping[str, str]:
    """The digest of the file."""
    from speculators.pipeline.digests import file_sha256

    return {"prompts": file_sha256(_file())}


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """One step in a recipe that converts a draft and judges it."""
    judged = recipe.eval.acceptance is not None or recipe.eval.benchmark is not None
    if not recipe.converts or not judged:
        return ()
    return (Step("prompts", version=1, reads=(), run=run, external=external, light=True),)


def _file() -> Path:
    return shipped_folder("recipes") / "data" / "prompts.jsonl"
