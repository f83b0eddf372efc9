"""The command line: one file a command, its options and its printing, no logic.

Commands are imported when they are asked for, so that `speculators --help` and `validate` stay instant.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module

import rich_click as click
from click.exceptions import Exit

from speculators import __version__
from speculators.errors import INTERRUPTED, SpeculatorsError

COMMANDS = {
    "run": "Run a recipe: data, hidden states, training, checkpoint, evaluation, report.",
    "plan": "Show what a run would do, and why, without doing it.",
    "validate": "Check recipes; no network, no torch.",
    "init": "Write a commented recipe to start from.",
    "recipes": "List, show and copy the recipes that came with speculators.",
    "schema": "Show what a recipe may say, section by section.",
    "status": "Show how a run is getting on.",
    "report": "Write a run's report again.",
    "convert": "Convert a draft of another project to the format that vLLM serves.",
    "export": "Write a checkpoint in another project's format.",
    "inspect": "Show what a draft is, and whether vLLM serves it.",
    "serve": "Serve a checkpoint over an OpenAI-compatible API.",
    "stitch": "Write a trained multi-token-prediction head back into its verifier.",
    "engine": "Install vLLM in an environment of its own, and see which would be used.",
    "cache": "List, explain, verify, prune and share stored artifacts.",
    "doctor": "Show what this machine has, and what is missing.",
}
"""Every command in the order of `--help`, with its one line; the module `cli/<name>.py` holds it as `command`."""


SPINS = "3000"
"""Turns for which OpenMP's threads wait busily for each other. GNU's default is a hundred times as many: as fast on an
idle machine, and several times slower with one other busy program on it, as threads wait for one that is not running.
"""


class LazyGroup(click.RichGroup):
    """A group that imports a command only when it is called; `--help` shows the lines above without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return click.Command(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS:
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"There is no command `{name}`. {hint}")
        return name, import_module(f"speculators.cli.{name}").command, args[1:]


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SPECULATORS"}
)
@click.version_option(__version__, message="speculators %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of short messages.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """One recipe in, a trained, verified, servable speculative-decoding draft out."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command line; the exit codes are those of `speculators.errors`."""
    debug = "--debug" in sys.argv
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is loaded, here and in every worker
    try:
        result = cli.main(standalone_mode=False)
    except SpeculatorsError as error:
        if debug:
            raise
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; finished work is kept", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(result if isinstance(result, int) else 0)
