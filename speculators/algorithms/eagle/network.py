"""EAGLE-1's network: one decoder layer that reads a feature with the next token's embedding, and foretells a feature.

The feature of position t is the verifier's last hidden state after its final norm, `f_t`. The input at t is
`fc([embedding of token t+1; f_t])`, the output stands for `f_{t+1}`, and the verifier's own head, frozen, makes logits
of it. A drafted token goes in the same way, with the network's own last output in f's place. The layer has no input
norm. Parameter names are those of the original checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.base import DraftNetwork
from speculators.algorithms.eagle.config import EagleConfig
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.decoder import DecoderLayer
from speculators.layers.rotary import Rotary, Tables

if TYPE_CHECKING:
    from speculators.verifiers.weights import VerifierWeights

INITIAL_STD = 0.02
"""Standard deviation of matrices that do not start as the verifier's."""


class EagleNetwork(DraftNetwork):
    """The draft. `verifier_head` [V, h] and `verifier_norm` [h] are the verifier's own: `attach` brings them, no
    checkpoint has them.
    """

    config_type: ClassVar[type[EagleConfig]] = EagleConfig
    config: EagleConfig
    shares_weights: ClassVar[bool] = True
    attends: ClassVar[bool] = True
    verifier_head: torch.Tensor
    verifier_norm: torch.Tensor

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.fc = nn.Linear(2 * hidden, hidden, bias=config.fc_bias)
        block = DecoderLayer(
            hidden_size=hidden,
            intermediate_size=config.intermediate_size,
            heads=config.attention_heads,
            key_value_heads=config.key_value_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            norms_input=False,
        )
        self.layers = nn.ModuleList([block])
        self.rotary = Rotary(config.head_dim, config.rope, config.max_position_embeddings)
        self.register_buffer("verifier_head", torch.empty(0, hidden), persistent=False)
        self.register_buffer("verifier_norm", torch.empty(0), persistent=False)
        self._eps = config.rms_norm_eps

    @property
    def layer(self) -> DecoderLayer:
        """The decoder layer, whose halves training calls one by one."""
        found = self.layers[0]
        assert isinstance(found, DecoderLayer)  # noqa: S101  what the constructor put there
        return found

    def attach(self, weights: VerifierWeights) -> None:
        """Take the verifier's head and final norm; a scale on its logits goes into the head.

        A soft cap on logits is left out, as in vLLM: it changes no order.
        """
        place = self.fc.weight
        head = weights.head if weights.scale == 1 else weights.head * weights.scale
        self.verifier_head = head.to(place)
        self.verifier_norm, self._eps = weights.norm.to(place), weights.eps

    def features(self, last: torch.Tensor) -> torch.Tensor:
        """f [..., h] from the verifier's stream before its final norm [..., h]."""
        wide = last.to(torch.promote_types(last.dtype, self.verifier_norm.dtype))
        normed = functional.rms_norm(wide, (wide.shape[-1],), self.verifier_norm.to(wide.dtype), self._eps)
        return normed.to(self.fc.weight.dtype)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., h] of verifier ids int64 [...]."""
        return functional.embedding(ids, self.embed_tokens.weight)

    def fuse(self, embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """What the layer reads [..., h], from the next tokens' embeddings and the features, [..., h] each."""
        result: torch.Tensor = self.fc(torch.cat([embeddings, features], -1))
        return result.to(features.dtype)  # the residual stream is never rounded

    def tables(self, positions: torch.Tensor, last: int | None = None) -> Tables:
        """Rotary tables of `positions` int64 [...]; step j of the chain at t is at position t + j."""
        result: Tables = self.rotary(positions, last)
        return result

    def logits(self, out: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] from the layer's output [..., h]."""
        return functional.linear(out, self.verifier_head)

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """Fill all parameters: the verifier's embedding, matrices normal with std 0.02, the norm one, the bias zero."""
        self.attach(weights)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, INITIAL_STD, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        self.embed_tokens.weight.copy_(weights.embedding)


Network = EagleNetwork
