"""The engine that a recipe names, opened for one of its two jobs: to answer, or to give hidden states."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from speculators.data.tokens import Reading
from speculators.decoding.request import Request
from speculators.engines.base import Answer, DocumentStates
from speculators.pipeline.step import Context
from speculators.recipe.shapes.verifier import TransformersEngine, VllmEngine

if TYPE_CHECKING:
    from speculators.engines.transformers import VerifierModel
    from speculators.engines.vllm.images import Shown
    from speculators.engines.vllm.server import ServerOptions

Generate = Callable[[Sequence[Request]], Iterator[Answer]]
Extract = Callable[[Sequence[Reading]], Generator[DocumentStates, None, None]]
"""Whoever stops reading before the end closes the generator, and with it the engine's work."""


@dataclass(frozen=True)
class Opening:
    """The verifier to open. `dtype` is its own, `compute_dtype` that of its products when it differs.

    `scratch` is a folder for the logs and files of an engine that is a process of its own; it is removed at the end,
    and kept when something fails.
    """

    engine: TransformersEngine | VllmEngine
    directory: Path
    dtype: str
    compute_dtype: str | None
    scratch: Path
    trust_remote_code: bool = False
    arguments: tuple[str, ...] = ()
    """Further ones for vLLM's command line."""
    reads_images: bool = False
    """Whether prompts or documents have images."""


def scratch_folder(context: Context) -> Path:
    """For an engine's files while a step uses it, each machine's own; hidden, so that nothing of it is published."""
    return context.output / f".engine-{context.nodes.number}"


@contextmanager
def generating(opening: Opening) -> Iterator[Generate]:
    """A function that answers requests, as they finish (`engines/base.py`)."""
    if isinstance(opening.engine, TransformersEngine):
        from speculators.engines.generation import generate

        yield partial(generate, _embedded(opening), batch_tokens=opening.engine.batch_tokens)
        return
    from speculators.engines.vllm.answers import answers
    from speculators.engines.vllm.client import served_model
    from speculators.engines.vllm.server import MODEL, serve_arguments, vllm_servers

    engine, shown = opening.engine, _shown(opening)
    if engine.endpoint is not None:
        url = engine.endpoint.rstrip("/").removesuffix("/v1")
        yield partial(answers, [url], served_model(url), at_once=engine.concurrency, shown=shown)
        return
    options = _served_options(opening, engine)
    arguments = serve_arguments(
        opening.directory, _served_dtype(opening), options, trust_remote_code=opening.trust_remote_code
    )
    with _scratch(opening.scratch) as folder, vllm_servers(arguments, options, folder) as urls:
        yield partial(answers, urls, MODEL, at_once=engine.concurrency, shown=shown)


@contextmanager
def extracting(opening: Opening, layers: Sequence[int]) -> Iterator[Extract]:
    """A function that reads documents and gives the streams entering `layers` (`engines/base.py`)."""
    if isinstance(opening.engine, TransformersEngine):
        from speculators.engines.extraction import extract

        yield partial(extract, _embedded(opening, layers, split_head=True), batch_tokens=opening.engine.batch_tokens)
        return
    from speculators.engines.vllm.environment import find_vllm
    from speculators.engines.vllm.server import MODEL, extraction_arguments, serve_arguments, vllm_servers
    from speculators.engines.vllm.states import Reader
    from speculators.verifiers.facts import VerifierFacts

    options = _served_options(opening, opening.engine)
    with _scratch(opening.scratch) as folder:
        depth = VerifierFacts.from_directory(opening.directory).layers
        reader = Reader.open(opening.directory, folder, layers, depth, _shown(opening))
        arguments = [
            *serve_arguments(
                opening.directory, _served_dtype(opening), options, trust_remote_code=opening.trust_remote_code
            ),
            *extraction_arguments(reader.columns, folder, cpu=find_vllm().cpu),
        ]
        with vllm_servers(arguments, options, folder) as urls:
            yield partial(reader.documents, urls, MODEL, at_once=opening.engine.concurrency)


def _embedded(opening: Opening, layers: Sequence[int] = (), *, split_head: bool = False) -> VerifierModel:
    from speculators.engines.transformers import VerifierModel

    assert isinstance(opening.engine, TransformersEngine)  # noqa: S101  the caller looked
    return VerifierModel.load(
        opening.directory,
        opening.dtype,
        opening.engine.device,
        threads=opening.engine.threads,
        aux_layers=layers,
        trust_remote_code=opening.trust_remote_code,
        compute_dtype=opening.compute_dtype,
        split_head=split_head,
        reads_images=opening.reads_images,
    )


def _served_options(opening: Opening, engine: VllmEngine) -> ServerOptions:
    from speculators.engines.vllm.server import server_options

    return replace(server_options(engine, opening.arguments), reads_images=opening.reads_images)


def _shown(opening: Opening) -> Shown | None:
    """How images are shown to vLLM; None where there are none."""
    if not opening.reads_images:
        return None
    from speculators.engines.vllm.images import Shown
    from speculators.verifiers.images import ImageReader

    return Shown(ImageReader(opening.directory, trust_remote_code=opening.trust_remote_code))


def _served_dtype(opening: Opening) -> str:
    """vLLM knows one type for weights, products and streams."""
    return opening.compute_dtype or opening.dtype


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)
