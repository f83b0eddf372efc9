"""The verifier and the engine that runs it (`schemas/sections/verifier.schema.json`)."""

from __future__ import annotations

from typing import Literal

from speculators.recipe.shapes.common import Dtype, Shape


class RandomVerifier(Shape, frozen=True):
    """A Llama of seeded random weights with a byte-level tokenizer: no download, for tests."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    vocab_size: int
    seed: int


class TransformersEngine(Shape, frozen=True, tag="transformers", tag_field="type"):
    """The embedded engine. Everything but the type is operational."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int | None
    batch_tokens: int


class VllmEngine(Shape, frozen=True, tag="vllm", tag_field="type"):
    """A real vLLM in an environment of its own. Everything but the type is operational."""

    endpoint: str | None
    concurrency: int
    tensor_parallel: int
    data_parallel: int
    replicas: int
    max_length: int | None
    memory_fraction: float
    cpu_cache: int
    eager: bool
    start_seconds: int


class Verifier(Shape, frozen=True):
    """Which large model is accelerated."""

    model: str | None
    random: RandomVerifier | None
    sha256: str | None
    revision: str | None
    dtype: Dtype | Literal["auto"]
    trust_remote_code: bool
    engine: TransformersEngine | VllmEngine
