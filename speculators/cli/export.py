"""`speculators export CHECKPOINT --to FORMAT`: a checkpoint in another project's format."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from speculators.cli.convert import check_new

TARGETS = (
    "eagle3",
    "eagle3.1",
    "modelopt",
    "specforge",
    "eagle",
    "medusa",
    "hydra",
    "mlp_speculator",
    "draft_model",
    "peagle",
    "dflash",
    "dspark",
    "vllm-native",
    "sglang",
)


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="The format, or an engine.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A new folder. [default: CHECKPOINT-FORMAT here]")
def command(checkpoint: Path, target: str, output: Path | None) -> None:
    """Write CHECKPOINT, a folder in the speculators format, as another project has it.

    What was converted from that format comes back with its weights bit for bit, and with its own config.json where its
    tensors have the names that they had there. A draft that the format's readers would take for another is refused.
    vllm-native and sglang are the format that the engine reads for the draft's type, beside ours.
    """
    from speculators.checkpoints.exporters import target_for, write_export
    from speculators.checkpoints.load import read_checkpoint

    output = output or Path(f"{checkpoint.resolve().name}-{target}")
    check_new(output)
    read = read_checkpoint(checkpoint)
    chosen = target_for(read, target)
    written = write_export(read, chosen, output)
    click.echo(f"{written.tensors} tensors written to {output}, as {chosen} has them")
    if written.left_out:
        names = ", ".join(written.left_out)
        click.echo(f"without {names}: the source had copies of its verifier's, which is not on this machine")
