"""A verifier's multi-token-prediction head: one decoder layer that is applied again for every token ahead.

Step j of the chain rooted at t reads the embedding of x_{t+1+j} and the state of step j - 1, of step 0 the verifier's
last one at t; it is at position t + j and predicts x_{t+2+j}:

    r = W [norm(embedding); norm(state)]      out = r + attention(norm(r)) + MLP      logits = head(norm(out))

with the order inside the brackets, and which states are normed, by the family (`styles.py`). Embedding, head and the
norm of the verifier's state are its own. Parameter names are those of the checkpoint format.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.base import DraftNetwork
from speculators.algorithms.mtp.attention import LatentAttention, PlainAttention
from speculators.algorithms.mtp.config import MtpConfig
from speculators.algorithms.mtp.experts import ExpertsMLP
from speculators.algorithms.mtp.native import read_head
from speculators.algorithms.mtp.norms import norm_of
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.decoder import GatedMLP
from speculators.layers.rotary import Rotary, Tables
from speculators.verifiers.weights import VerifierWeights


class MtpLayer(nn.Module):
    """The head's layer, in two halves around an attention that the caller owns (see `layers/decoder.py`)."""

    def __init__(self, config: MtpConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.token_layernorm = norm_of(config, hidden)
        self.hidden_layernorm = norm_of(config, hidden)
        self.input_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.input_layernorm = norm_of(config, hidden)
        self.self_attn = PlainAttention(config) if config.latent is None else LatentAttention(config, config.latent)
        self.post_attention_layernorm = norm_of(config, hidden)
        self.mlp = (
            GatedMLP(hidden, config.intermediate_size) if config.mixture is None else ExpertsMLP(hidden, config.mixture)
        )
        self.final_layernorm = norm_of(config, hidden)

    def enter(self, embeddings: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the projections read and the residual, [..., h] each, from `embeddings` and `state` [..., h]."""
        parts = [self.token_layernorm(embeddings), self.hidden_layernorm(state)]
        if not self.config.how.embedding_first:
            parts.reverse()
        residual = self.input_proj(torch.cat(parts, -1)).to(state.dtype)  # the residual stream is never rounded
        return self.self_attn.operand(self.input_layernorm(residual)), residual

    def leave(self, attended: torch.Tensor, gates: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """The stream after the layer [..., h], from attention's result [..., heads, d]."""
        hidden = residual + self.self_attn.result(attended, gates)
        result: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class MtpNetwork(DraftNetwork):
    """The head. What it shares with the verifier are buffers, which are in no checkpoint."""

    config: MtpConfig
    shares_weights: ClassVar[bool] = True
    attends: ClassVar[bool] = True
    embedding: torch.Tensor
    head: torch.Tensor
    verifier_norm: torch.Tensor

    def __init__(self, config: MtpConfig) -> None:
        super().__init__()
        self.config = config
        self.mtp_layers = nn.ModuleList([MtpLayer(config)])
        self.rotary = Rotary(config.rotary_dim, config.rope, config.max_position_embeddings)
        for name in ("embedding", "head"):
            self.register_buffer(name, torch.empty(0, config.hidden_size), persistent=False)
        self.register_buffer("verifier_norm", torch.ones(config.hidden_size), persistent=False)

    @property
    def layer(self) -> MtpLayer:
        """The one layer."""
        found = self.mtp_layers[0]
        assert isinstance(found, MtpLayer)  # noqa: S101  what the constructor put there
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters, and of the residual stream."""
        return self.layer.input_proj.weight.dtype

    def attach(self, weights: VerifierWeights) -> None:
        """Take the verifier's embedding, head and final norm."""
        device = self.verifier_norm.device
        self.embedding = weights.embedding.to(device, self.dtype)
        tied = weights.head is weights.embedding
        self.head = self.embedding if tied else weights.head.to(device, self.dtype)
        self.verifier_norm = weights.norm.to(device)

    @classmethod
    def started(
        cls, config: MtpConfig, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator
    ) -> MtpNetwork:
        """The head as the verifier's checkpoint has it; nothing is random.

        Raises UsageError when there is none that can be trained.
        """
        told, tensors = read_head(config, weights)
        network = cls(told)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        network.attach(weights)
        return network

    def state(self, last: torch.Tensor) -> torch.Tensor:
        """What step 0 reads [..., h], of the verifier's stream before its final norm `last` [..., h]."""
        if not self.config.how.reads_normed:
            return last.to(self.dtype)
        weight = self.verifier_norm.to(torch.promote_types(last.dtype, torch.float32))
        return functional.rms_norm(last.to(weight), weight.shape, weight, self.config.rms_norm_eps).to(self.dtype)

    def embed(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., h] of the tokens int64 [...] that are read at `positions` int64 [...]."""
        found = functional.embedding(ids, self.embedding)
        if not self.config.how.blanks_first:
            return found
        return found.masked_fill((positions == 0)[..., None], 0.0)

    def tables(self, positions: torch.Tensor, last: int | None = None) -> Tables:
        """Rotary tables of `positions` int64 [...]; step j of the chain at t is at position t + j."""
        result: Tables = self.rotary(positions, last)
        return result

    def normed(self, out: torch.Tensor) -> torch.Tensor:
        """What the verifier's head reads, of the layer's `out` [..., h]."""
        result: torch.Tensor = self.layer.final_layernorm(out)
        return result

    def next_state(self, out: torch.Tensor) -> torch.Tensor:
        """What the next step reads in the verifier's place, of the layer's `out` [..., h]."""
        return self.normed(out) if self.config.how.passes_normed else out


Network = MtpNetwork
