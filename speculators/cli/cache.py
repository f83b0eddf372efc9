"""`speculators cache`: what is in the store, why two artifacts differ, whether they are whole, and making room."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from speculators.amounts import age_text, size_text, time_text
from speculators.cli.asked import remote_option, store_option
from speculators.errors import StepError, UsageError

if TYPE_CHECKING:
    from speculators.pipeline.manifest import Manifest
    from speculators.pipeline.remote import Remote
    from speculators.pipeline.store import Artifact, Store

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.group("cache")
def command() -> None:
    """List, explain, verify and prune stored artifacts; copy them to and from a remote store."""


@command.command("list")
@store_option
@click.option("--remote", metavar="URL", help="List that remote store instead.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_artifacts(store: Path | None, remote: str | None, as_json: bool) -> None:
    """Show every artifact: step, recipe, size, age, and how long it took to make."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from speculators.pipeline.manifest import NAME, artifact_id

    here = [] if remote else list(_open(store).all())
    found = _remote(remote).all() if remote else [one.manifest for one in here]
    if as_json:
        rows = [
            {
                "artifact": artifact_id(one.step, one.key),
                "step": one.step,
                "recipe": one.recipe,
                "bytes": one.size,
                "files": len(one.files),
                "seconds": one.seconds,
                "finished": one.finished,
            }
            for one in found
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    used = [(one.path / NAME).stat().st_mtime for one in here] or [_moment(one.finished) for one in found]
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("artifact", "recipe", "made" if remote else "last used"):
        table.add_column(name, no_wrap=True)
    for name in ("size", "made in"):
        table.add_column(name, justify="right", no_wrap=True)
    for one, moment in zip(found, used, strict=True):
        name, age = artifact_id(one.step, one.key), age_text(time.time() - moment)
        table.add_row(name, escape(one.recipe), age, size_text(one.size), time_text(one.seconds))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n  {len(found)} artifacts, {size_text(sum(one.size for one in found))}", style="dim")


@command.command("show")
@click.argument("artifact")
@store_option
def show(artifact: str, store: Path | None) -> None:
    """Print the manifest of ARTIFACT (an id, its beginning, or a step's name for the newest) and where it lies."""
    found = _find(_open(store), artifact)
    click.echo(json.dumps({"path": str(found.path), **asdict(found.manifest)}, indent=1))


@command.command("explain")
@click.argument("first")
@click.argument("second", required=False)
@store_option
def explain(first: str, second: str | None, store: Path | None) -> None:
    """Show in what the keys of FIRST and SECOND differ; without SECOND, of FIRST and the one made before it."""
    from speculators.pipeline.reasons import changes

    opened = _open(store)
    new = _find(opened, first)
    if second is None:
        older = [one for one in opened.history(new.manifest.step) if one.manifest.finished < new.manifest.finished]
        if not older:
            raise UsageError(f"{new.path.name} is the only {new.manifest.step} in the store")
        old = older[0]
    else:
        old, new = new, _find(opened, second)
    click.echo(f"{old.path.name} -> {new.path.name}")
    found = changes(old.manifest.hashed, new.manifest.hashed)
    for change in found:
        click.echo(f"  {change}")
    if not found:
        same = old.manifest.instance == new.manifest.instance
        click.echo("  the same key" + (" and the same bytes" if same else ", made twice with different bytes"))


@command.command("verify")
@click.argument("artifacts", nargs=-1)
@store_option
@click.option("--remove", is_flag=True, help="Remove damaged artifacts, so that the next run makes them again.")
def verify(artifacts: tuple[str, ...], store: Path | None, remove: bool) -> None:
    """Read every file of ARTIFACTS (default: all) again and compare it with its sha256."""
    opened = _open(store)
    chosen = [_find(opened, text) for text in artifacts] or list(opened.all())
    damaged = 0
    for artifact in chosen:
        why = opened.verify(artifact)
        click.echo(f"{artifact.path.name}: {why or 'whole'}")
        damaged += why is not None
        if why is not None and remove:
            opened.discard(artifact.path.name)
    unreadable = sorted(
        {path.name for path in opened.artifacts.iterdir()} - {one.path.name for one in opened.all()}
        if not artifacts
        else ()
    )
    for name in unreadable:
        click.echo(f"{name}: no readable manifest")
        if remove:
            opened.discard(name)
    if damaged + len(unreadable):
        raise StepError(f"{damaged + len(unreadable)} damaged" + ("; removed" if remove else "; --remove removes them"))


@command.command("prune")
@click.argument("steps", nargs=-1)
@click.option("--older-than", metavar="SPAN", help="Not used for this long: 30d, 12h.")
@click.option("--to-size", metavar="SIZE", help="Remove the longest unused until this much is left: 500GB.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
def prune(steps: tuple[str, ...], older_than: str | None, to_size: str | None, yes: bool, store: Path | None) -> None:
    """Remove artifacts and unfinished work of STEPS (names or ids), by age, or down to a size.

    What is being worked on is never touched. Removing an input of what is cached costs nothing: plans go backwards.
    """
    from speculators.pipeline.prune import candidates, chosen, remove

    if not steps and older_than is None and to_size is None:
        raise UsageError("say what may go: --older-than 30d, --to-size 500GB, or steps")
    opened = _open(store)
    going = chosen(
        candidates(opened),
        steps=steps,
        older_than=None if older_than is None else _span(older_than),
        to_size=None if to_size is None else _size(to_size),
    )
    for candidate in going:
        state = "unfinished, " if candidate.partial else ""
        age = age_text(time.time() - candidate.used)
        click.echo(f"{candidate.id:<44} {size_text(candidate.size):>8}   {state}last used {age}")
    if not going:
        click.echo("nothing to remove")
        return
    total = size_text(sum(candidate.size for candidate in going))
    if not yes:
        if not sys.stdin.isatty():
            click.echo(f"{total} would be freed; --yes removes them")
            return
        click.confirm(f"Remove these and free {total}?", abort=True)
    gone = remove(opened, going)
    click.echo(f"removed {len(gone)}, freed {size_text(sum(candidate.size for candidate in gone))}")


@command.command("push")
@click.argument("artifacts", nargs=-1, required=True)
@store_option
@remote_option
def push(artifacts: tuple[str, ...], store: Path | None, remote: str | None) -> None:
    """Copy ARTIFACTS (ids, their beginnings, or steps' names for the newest) to the remote store.

    What is there already is not copied again.
    """
    from speculators.pipeline.store import Artifact

    opened, there = _open(store), _remote(remote)
    for text in artifacts:
        named = _find(opened, text)
        found = opened.find(named.manifest.step, named.manifest.key)
        if not isinstance(found, Artifact):
            raise StepError(f"{named.path.name} is damaged here: {getattr(found, 'why', 'it is gone')}")
        what = "pushed " + size_text(found.manifest.size) if there.push(found) else "there already"
        click.echo(f"{named.path.name}: {what}")


@command.command("pull")
@click.argument("artifacts", nargs=-1, required=True)
@store_option
@remote_option
def pull(artifacts: tuple[str, ...], store: Path | None, remote: str | None) -> None:
    """Fetch ARTIFACTS (ids, their beginnings, or steps' names for the newest) from the remote store.

    Every file is held to its sha256 before the artifact is there.
    """
    from speculators.pipeline.store import Damaged

    opened, there = _open(store), _remote(remote)
    for manifest in [_offered(there, text) for text in artifacts]:
        found = there.pull(manifest, opened, run="cache pull", waiting=click.echo)
        if isinstance(found, Damaged):
            raise StepError(f"{found.path.name} is damaged in {there}: {found.why}")
        click.echo(f"{found.path.name}: {size_text(found.manifest.size)} in {found.path}")


def _open(root: Path | None) -> Store:
    from speculators.pipeline.store import Store, default_store

    return Store.open(root or default_store())


def _remote(url: str | None) -> Remote:
    from speculators.pipeline.remote import Remote

    if not url:
        raise UsageError("--remote URL (or SPECULATORS_REMOTE) is missing: the store to copy to or from")
    return Remote.open(url)


def _offered(remote: Remote, text: str) -> Manifest:
    """What the remote store has under this name, by the rules of `_find`."""
    from speculators.pipeline.manifest import artifact_id

    found = remote.all()
    if newest := [one for one in found if one.step == text]:
        return newest[0]
    found = [one for one in found if artifact_id(one.step, one.key).startswith(text)]
    if len(found) != 1:
        what = "no artifact" if not found else f"{len(found)} artifacts"
        raise UsageError(f"{what} in {remote} whose name starts with {text!r}; `cache list --remote URL` shows all")
    return found[0]


def _find(store: Store, text: str) -> Artifact:
    """The artifact with this id or an id that starts so; for a step's name the newest."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", text):
        raise UsageError(f"{text!r} is not an artifact; artifacts are named like `tokens-6d20f03c9a41be77`")
    if newest := store.history(text):
        return newest[0]
    found = [artifact for artifact in store.all() if artifact.path.name.startswith(text)]
    if len(found) != 1:
        what = "no artifact" if not found else f"{len(found)} artifacts"
        raise UsageError(f"{what} in {store.root} whose name starts with {text!r}; `speculators cache list` shows all")
    return found[0]


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = match and (match[2] if match[2].endswith("B") or not match[2] else f"{match[2]}B")
    if not match or unit not in _SIZES:
        raise UsageError(f"--to-size is {text!r}; write it like 500GB, 20MB or 1.5TB")
    return int(float(match[1]) * _SIZES[unit])


def _span(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    if not match:
        raise UsageError(f"--older-than is {text!r}; write it like 30d, 12h or 2w")
    return float(match[1]) * _SPANS[match[2]]
