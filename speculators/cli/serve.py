"""`speculators serve`: a checkpoint, or a verifier alone, behind an OpenAI-compatible API."""

from __future__ import annotations

from pathlib import Path

import rich_click as click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on; 0 picks a free one.")
@click.option("--model-name", help="Name of the model in the API. [default: the folder's name]")
@click.option(
    "--verifier", type=click.Path(path_type=Path), help="Folder of the verifier, instead of the checkpoint's."
)
@click.option("--draft/--no-draft", "with_draft", default=True, show_default=True, help="Whether the draft is used.")
@click.option(
    "--dtype", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16", "float16"])
)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"]))
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: torch's choice]")
@click.option("--speculative-tokens", type=click.IntRange(1, 32), help="Proposals a pass. [default: the checkpoint's]")
@click.option(
    "--least-confidence",
    default=0.0,
    type=click.FloatRange(0, 1, max_open=True),
    help="End a proposal where a DSpark draft's trust in it falls below this. [default: whole proposals]",
)
@click.option("--slots", default=8, show_default=True, type=click.IntRange(1), help="Requests decoded at once.")
@click.option(
    "--max-model-len", default=2048, show_default=True, type=click.IntRange(2), help="Prompt and answer, in tokens."
)
@click.option("--trust-remote-code", is_flag=True, help="Run code from the verifier's repository.")
def command(
    checkpoint: Path,
    host: str,
    port: int,
    model_name: str | None,
    verifier: Path | None,
    with_draft: bool,
    dtype: str,
    device: str,
    threads: int | None,
    speculative_tokens: int | None,
    least_confidence: float,
    slots: int,
    max_model_len: int,
    trust_remote_code: bool,
) -> None:
    """Serve CHECKPOINT over an OpenAI-compatible API.

    CHECKPOINT is a folder in the speculators format, or a verifier's own folder (served without a draft). The API has
    /v1/models, /v1/completions, /v1/chat/completions, /health and /metrics.
    """
    from speculators.engines.listen import listen
    from speculators.engines.served import ServeOptions, open_served

    options = ServeOptions(
        model_name=model_name,
        verifier=verifier,
        with_draft=with_draft,
        dtype=dtype,
        device=device,
        threads=threads,
        speculative_tokens=speculative_tokens,
        least_confidence=least_confidence,
        slots=slots,
        capacity=max_model_len,
        trust_remote_code=trust_remote_code,
    )
    listen(open_served(checkpoint, options), host, port, lambda url: click.echo(f"serving {checkpoint} at {url}/v1"))
