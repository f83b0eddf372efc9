"""`speculators engine`: install, find and remove the engine that lives in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from speculators.errors import UsageError


@click.group("engine")
def command() -> None:
    """Install vLLM in an environment of its own, see which one would be used, or remove it."""


@command.command("install")
@click.argument("name", type=click.Choice(["vllm"]))
@click.option(
    "--build",
    type=click.Choice(["auto", "gpu", "cpu"]),
    default="auto",
    show_default=True,
    help="auto: the GPU build where there is a GPU.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where. Default: the user's data folder."
)
@click.option("--python", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The interpreter to use.")
@click.option("--constraints", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Passed on to pip.")
def install_command(name: str, build: str, folder: Path | None, python: Path | None, constraints: Path | None) -> None:
    """Make an environment with vLLM: several GB, some minutes. An interrupted installation is continued."""
    from speculators.engines.vllm.install import install
    from speculators.pipeline.machine import gpus

    chosen = build if build != "auto" else ("gpu" if gpus() else "cpu")
    found = install(
        "gpu" if chosen == "gpu" else "cpu", folder=folder, python=python, constraints=constraints, tell=click.echo
    )
    click.echo(f"{name} {found.vllm} (torch {found.torch}, transformers {found.transformers}): {found.python}")


@command.command("status")
def status_command() -> None:
    """Which vLLM would be used. Exit status 5: none."""
    from speculators.engines.vllm.environment import find_vllm

    found = find_vllm()
    click.echo(f"vllm {found.vllm} (torch {found.torch}, transformers {found.transformers}): {found.python}")
    if found.misfit:
        click.echo(found.misfit, err=True)


@command.command("remove")
@click.argument("name", type=click.Choice(["vllm"]))
def remove_command(name: str) -> None:
    """Remove the environment that `install` made in the user's data folder."""
    from speculators.engines.vllm.install import remove

    if not remove():
        raise UsageError(f"there is no environment of {name} that was installed by `speculators engine install`")
    click.echo("removed")
