"""A variant of the benchmark, served by the recipe's engine: a verifier, alone or with a draft trained for another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from speculators.engines.vllm.as_served import as_served
from speculators.engines.vllm.server import serve_arguments, server_options, vllm_servers
from speculators.evaluation.served_process import served
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine
from speculators.verifiers.facts import VerifierFacts

MODEL = "verifier"
"""What the served model is called; the same for all variants, so that their requests are the same."""


@dataclass(frozen=True)
class Variant:
    """What is served: the verifier in a directory and, unless None, the draft of a checkpoint. `dtype` is the recipe's.

    `speculative_tokens` are drafted a pass (None: as the checkpoint says). The embedded engine decodes `slots` requests
    at once; `engine_arguments` are further ones for vLLM's command line.
    """

    verifier: Path
    checkpoint: Path | None
    dtype: str
    slots: int
    speculative_tokens: int | None = None
    trust_remote_code: bool = False
    engine_arguments: tuple[str, ...] = ()


def serving(variant: Variant, engine: TransformersEngine | VllmEngine, folder: Path) -> AbstractContextManager[str]:
    """Serve a variant for as long as the block lasts, with the server's log in `folder`; gives the base URL."""
    return _vllm(variant, engine, folder) if isinstance(engine, VllmEngine) else _embedded(variant, engine, folder)


@contextmanager
def _embedded(variant: Variant, engine: TransformersEngine, folder: Path) -> Iterator[str]:
    arguments = [
        str(variant.checkpoint or variant.verifier),
        *("--model-name", MODEL),
        *("--dtype", _dtype(variant)),
        *("--device", engine.device),
        *("--slots", str(variant.slots)),
    ]
    if variant.checkpoint is not None:
        arguments += ["--verifier", str(variant.verifier)]
    if variant.speculative_tokens is not None:
        arguments += ["--speculative-tokens", str(variant.speculative_tokens)]
    if engine.threads is not None:
        arguments += ["--threads", str(engine.threads)]
    if variant.trust_remote_code:
        arguments += ["--trust-remote-code"]
    with served(arguments, folder / "server.log") as url:
        yield url


@contextmanager
def _vllm(variant: Variant, engine: VllmEngine, folder: Path) -> Iterator[str]:
    linked = folder / "served"
    shutil.rmtree(linked, ignore_errors=True)
    options = replace(server_options(engine, variant.engine_arguments), replicas=1)
    try:
        model = variant.verifier
        if variant.checkpoint is not None:
            model, more = as_served(variant.checkpoint, linked, variant.verifier, variant.speculative_tokens)
            options = replace(options, extra=(*options.extra, *more))
        arguments = serve_arguments(model, _dtype(variant), options, trust_remote_code=variant.trust_remote_code)
        with vllm_servers(arguments, options, folder) as (url,):
            yield url
    finally:
        shutil.rmtree(linked, ignore_errors=True)


def _dtype(variant: Variant) -> str:
    """The recipe's type; `auto` for quantised weights, which say themselves in which type they are multiplied.

    vLLM takes only a few types with each kind of quantised weights (FP8 and AWQ refuse float32), and the config names
    one of these. For other weights `auto` would be wrong: vLLM halves float32, and the variant would no longer be
    compared in the type of `dense`.
    """
    return "auto" if VerifierFacts.from_directory(variant.verifier).is_quantized else variant.dtype
