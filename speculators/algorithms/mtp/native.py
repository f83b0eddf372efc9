"""The head as a verifier's checkpoint has it, which is where its training starts; transformers drops these tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from speculators.algorithms.mtp.config import MtpConfig, told_by_shapes
from speculators.algorithms.mtp.layout import tensors as tensors_of
from speculators.algorithms.mtp.native_names import NativeHead, find_head
from speculators.algorithms.mtp.styles import HEAD
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts
from speculators.verifiers.weights import VerifierWeights, read_tensors, tensor_files


def native_head(directory: Path, facts: VerifierFacts) -> NativeHead:
    """Where the head's tensors are in the directory of a verifier.

    Raises UsageError when it has none that can be trained.
    """
    return find_head(tensor_files(directory), facts.layers, facts.model_type, str(directory))


def read_head(config: MtpConfig, weights: VerifierWeights) -> tuple[MtpConfig, dict[str, torch.Tensor]]:
    """The head's shape as its tensors tell it, and these in the types they have, under the names of our format.

    `config` is what the verifier's config tells. Raises UsageError when there is no head that can be trained, or one
    with an embedding or a head of its own.
    """
    directory = weights.directory
    if directory is None:
        raise UsageError("a verifier's multi-token-prediction head can only be read from its directory")
    native = native_head(directory, VerifierFacts.from_directory(directory))
    tensors = read_tensors(directory, native.names.values())
    own = {ours: tensors[name] for ours, name in native.names.items()}
    for name, copy in read_tensors(directory, native.copies).items():
        if not torch.equal(copy.float(), weights.embedding if name.endswith("embed_tokens.weight") else weights.head):
            raise UsageError(
                f"{directory}: {name} is not the verifier's own; a head that shares nothing is not trained"
            )
    for name, tensor in own.items():
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(f"{directory}: {native.names[name]} is {kind}; a quantized head cannot be trained")
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    told = told_by_shapes(config, native.style, shapes, str(directory))
    _check_shapes(shapes, told, native, str(directory))
    return told, {HEAD + name: tensor for name, tensor in own.items()}


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], told: MtpConfig, native: NativeHead, where: str) -> None:
    """Raise UsageError for a tensor that a head of this shape does not have, lacks, or has in another shape."""
    expected = {name.removeprefix(HEAD): shape for name, shape in tensors_of(told.to_config_json()).items()}
    for name in sorted(shapes.keys() | expected.keys()):
        found, wanted = (list(one[name]) if name in one else "none" for one in (shapes, expected))
        if found != wanted:
            raise UsageError(
                f"{where}: of the multi-token-prediction head's {native.names.get(name, name)} there is {found}; "
                f"config.json and its other tensors make it {wanted}"
            )
