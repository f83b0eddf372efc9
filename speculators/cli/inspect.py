"""`speculators inspect PATH`: what a draft is, its tensors, its verifier, and whether vLLM serves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import rich_click as click

if TYPE_CHECKING:
    from speculators.checkpoints.describe import Description


@click.command("inspect")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(path: str, as_json: bool) -> None:
    """Show what the draft at PATH is: a folder, a weights file with its config.json beside it, or a hub id.

    Nothing is run, and of a folder only the headers of the weights are read.
    """
    from speculators.checkpoints.describe import describe
    from speculators.checkpoints.source import draft_digest, open_draft, parse_draft_source

    source = parse_draft_source(path)
    found = describe(open_draft(source, draft_digest(source) if source.hub else ""))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    for line in lines(found):
        click.echo(line)


def lines(found: Description) -> list[str]:
    """The description as text."""
    facts = {
        "what": found.kind,
        "because": ", ".join(found.because),
        "verifier": found.verifier or "not named",
        "reads": ", ".join(map(str, found.reads)) if found.reads else "",
        "drafts": f"{found.speculative_tokens} tokens a pass" if found.speculative_tokens else "",
        "size": f"{found.parameters:,} parameters, {found.bytes / 1e6:,.1f} MB",
        "vLLM": "serves it as it is" if found.served else "does not serve it as it is",
    }
    text = [found.path, ""]
    text += [f"  {name:<9} {value}" for name, value in facts.items() if value]
    text += [f"            - {problem}" for problem in found.problems]
    text += [f"  next      {advice}" for advice in found.advice]
    width = max((len(line.name) for line in found.tensors), default=0)
    text += ["", *(f"  {line.name:<{width}}  {line.dtype:<8}  {list(line.shape)}" for line in found.tensors)]
    return text
