"""What training needs of an algorithm: a batch goes in, a loss and measurements as (sum, count) come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

from speculators.layers.attention import chain_attention
from speculators.layers.block_attention import block_attention

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.data.vocabulary import DraftVocabulary
    from speculators.verifiers.weights import VerifierWeights

Measured = dict[str, tuple[float, float]]
"""Name -> (sum, count). Sums over batches (or ranks) are taken before dividing."""

Noise = Callable[[int], torch.Generator]
"""The generator of all that is random in training on a document, such as feature noise, by its place in the batch."""

Total = Callable[[torch.Tensor], torch.Tensor]
"""The sum of a tensor [n], float64 on the CPU, over all processes that have a part of the same batch.

Each of them has to ask for it.
"""


def alone(counts: torch.Tensor) -> torch.Tensor:
    """The `Total` of a process that has the whole batch."""
    return counts


@dataclass(frozen=True)
class Batch:
    """Whole documents packed one after another, N tokens in all.

    `loss_mask[t]` says whether token t itself was written by the assistant; `aux` are the verifier's streams side by
    side, `last` the one before its final norm, `argmax` its own most likely next token after t wherever token t+1 is
    the assistant's, and no token's id elsewhere. `positions` are the rotary positions where they are not every token's
    place in its document, as behind images.
    """

    lengths: tuple[int, ...]
    input_ids: torch.Tensor  # int64 [N]
    loss_mask: torch.Tensor  # bool [N]
    aux: torch.Tensor  # [N, A*h]
    last: torch.Tensor  # [N, h]
    argmax: torch.Tensor  # int64 [N]
    positions: torch.Tensor | None = None  # int64 [N], on the CPU

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Accepted:
    """How far every chain of a batch would have been accepted, for the walk estimate.

    `newest` int64 [chains] is the index in the batch of each chain's newest committed token, ascending; `lengths`
    int64 [chains] how many of its proposals in a row are the verifier's own choices.
    """

    newest: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Evaluation:
    """A batch's loss (a scalar, with gradient if one was asked for), its measurements, and its chains' acceptance.

    Of a part of a batch, loss and gradient are that part's summands of the whole batch's.
    """

    loss: torch.Tensor
    measured: Measured
    accepted: Accepted


class DraftNetwork(nn.Module):
    """A draft: `Network` in `algorithms/<name>/network.py`, made of its config. Parameters have the format's names."""

    config: Any
    """A `contracts.DraftConfig`."""
    shares_weights: ClassVar[bool] = False
    """Whether it uses the verifier's own embedding or head, which are then in no checkpoint (`attach`)."""

    computes_layers_in_halves: ClassVar[bool] = True
    """Whether training goes through `enter` and `leave` of its decoder layers, if it has any: they can be compiled."""

    attends: ClassVar[bool] = False
    """Whether training attends by one of the two below: others with the same result may be put in their place."""

    chain_attention = staticmethod(chain_attention)
    block_attention = staticmethod(block_attention)

    added: ClassVar[tuple[str, ...]] = ()
    """Modules, by name, that it adds to another algorithm's draft: beginning with one of those leaves them fresh."""

    tables_and_heads: ClassVar[tuple[str, ...]] = ("embed_tokens", "lm_head", "lm_heads")
    """Parts of the names of parameters that are look-up tables or output layers: Muon is not meant for those."""

    def attach(self, weights: VerifierWeights) -> None:
        """Take what is shared with the verifier; only asked where `shares_weights`."""

    @classmethod
    def started(
        cls, config: Any, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator
    ) -> Self:
        """A network of this `config`, as training begins with it."""
        network = cls(config)
        network.start_from(weights, vocabulary, generator)
        return network

    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """Fill everything: from the verifier, from `generator`, and with the maps of a reduced vocabulary."""
        raise NotImplementedError

    @torch.no_grad()
    def map_vocabulary(self, vocabulary: DraftVocabulary) -> None:
        """Fill the buffers `d2t` and `t2d` of a draft that has them, those with a reduced vocabulary."""
        if vocabulary.d2t is not None and vocabulary.t2d is not None:
            buffers = dict(self.named_buffers())
            buffers["d2t"].copy_(vocabulary.d2t)
            buffers["t2d"].copy_(vocabulary.t2d)


class Objective(Protocol):
    """An algorithm's training: `Objective` in `algorithms/<name>/objective.py`.

    It is made of a network, the options of the recipe's section, the verifier's `VerifierHead`, and the keyword
    `compute_dtype`, the type of the products (the network has its own already: `mix_precision`).
    """

    @property
    def network(self) -> DraftNetwork:
        """The draft; its parameters with `requires_grad` are trained."""

    @property
    def steps(self) -> int:
        """Proposals a chain is trained for, and judged by in validation."""

    def evaluate(self, batch: Batch, noise: Noise | None = None, total: Total = alone) -> Evaluation:
        """Loss and measurements of one batch, or of this process's part of it, which may be empty.

        Nothing is random, and every chain is judged, when no generators are given. `total` is called equally often in
        every process, with tensors of the same shape; `measured` is empty where there is nothing to learn from.
        """


def add_measured(total: Measured, new: Mapping[str, tuple[float, float]]) -> None:
    """Add sums and counts of `new` to `total`, in place."""
    for name, (value, count) in new.items():
        before = total.get(name, (0.0, 0.0))
        total[name] = before[0] + value, before[1] + count


def summed(parts: Iterable[Mapping[str, tuple[float, float]]]) -> Measured:
    """All sums and counts together."""
    total: Measured = {}
    for part in parts:
        add_measured(total, part)
    return total


def divided(measured: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The figures themselves; those without any count are left out."""
    return {name: value / count for name, (value, count) in measured.items() if count}
