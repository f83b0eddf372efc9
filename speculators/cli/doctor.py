"""`speculators doctor`: what this machine has, and what is missing, without importing any of it."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import rich_click as click

from speculators.amounts import size_text
from speculators.cli.asked import store_option
from speculators.errors import MachineError, SpeculatorsError

NEEDED = ("torch", "transformers", "guidellm", "safetensors", "datasets")
_LEAST_DISK = 5 * 10**9
_LEAST_MEMORY = 4 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fine` None: neither good nor bad."""

    what: str
    found: str
    fine: bool | None = None


@click.command("doctor")
@store_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(store: Path | None, as_json: bool) -> None:
    """Show what this machine has, and what is missing. Exit status 5 when something is missing that a run needs."""
    from rich.console import Console
    from rich.table import Table

    findings = examine(store)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table = Table(box=None, padding=(0, 1), show_header=False)
        for finding in findings:
            mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]·[/]"}[finding.fine]
            table.add_row(mark, finding.what, finding.found)
        Console(highlight=False).print(table)
    wrong = [finding.what for finding in findings if finding.fine is False]
    if wrong:
        raise MachineError(f"not fit for a run: {', '.join(wrong)}")


def examine(root: Path | None) -> list[Finding]:
    """Everything that is looked at; secrets are only ever reported as set or not set."""
    from speculators import __version__
    from speculators.pipeline import machine
    from speculators.pipeline.store import default_store

    place = root or default_store()
    disk, memory = machine.free_disk(place), machine.total_memory()
    found = [
        Finding("speculators", __version__),
        Finding("Python", f"{platform.python_version()}, {sys.executable}", sys.version_info >= (3, 10)),
    ]
    for package in NEEDED:
        version = machine.version_of(package)
        found.append(Finding(package, version or "not installed", version is not None))
    token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")) or _token_file().is_file()
    return [
        *found,
        Finding("processor", f"{machine.cores()} cores, {machine.processor()}"),
        Finding("GPUs", ", ".join(machine.gpus()) or "none"),
        Finding("memory", size_text(memory), memory >= _LEAST_MEMORY),
        Finding("disk", f"{size_text(disk)} free in {place}", disk >= _LEAST_DISK),
        _locks(place),
        _vllm(),
        _remote(),
        Finding("Hugging Face token", "set" if token else "not set"),
    ]


def _vllm() -> Finding:
    from speculators.engines.vllm.environment import find_vllm

    try:
        found = find_vllm()
    except MachineError as error:
        return Finding("vLLM", f"{error} (the embedded engine is always there)")
    versions = f"{found.vllm} with torch {found.torch}, transformers {found.transformers}, in {found.python}"
    return Finding("vLLM", found.misfit or versions, False if found.misfit else None)


def _locks(place: Path) -> Finding:
    from speculators.pipeline.locks import check_locks_work
    from speculators.pipeline.store import Store

    try:
        check_locks_work(Store.open(place).root)
    except SpeculatorsError as error:
        return Finding("locks", str(error), False)
    return Finding("locks", "flock works where the store is", True)


def _remote() -> Finding:
    from speculators.pipeline.remote import Remote

    url = os.environ.get("SPECULATORS_REMOTE")
    if not url:
        return Finding("remote store", "none (SPECULATORS_REMOTE)")
    try:
        return Finding("remote store", str(Remote.open(url)))
    except SpeculatorsError as error:
        return Finding("remote store", str(error), False)


def _token_file() -> Path:
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "token"
