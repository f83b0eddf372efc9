"""`speculators stitch`: a trained multi-token-prediction head, back into its verifier's checkpoint."""

from __future__ import annotations

from pathlib import Path

import rich_click as click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--verifier",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the verifier that the head was taken from.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write; it must be new.")
def command(checkpoint: Path, verifier: Path, output: Path) -> None:
    """Write the head of CHECKPOINT into a copy of its verifier's checkpoint, as vLLM serves it.

    CHECKPOINT is a draft of the type mtp. Every byte of the verifier but the head's tensors stays what it was.
    """
    from speculators.checkpoints.stitch import stitch

    done = stitch(checkpoint, verifier, output)
    click.echo(
        f"{output}: {len(done.tensors)} tensors replaced in {', '.join(done.changed)}; "
        f"{len(done.linked)} files linked, {len(done.copied)} copied"
    )
    click.echo(f"""vllm serve {output} --speculative-config '{{"method": "mtp", "num_speculative_tokens": 3}}'""")
