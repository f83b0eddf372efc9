"""EAGLE-3's network: one or a few decoder layers that read the verifier's streams and the next token's embedding.

At position t the input is the embedding of token t+1 and `g_t = fc(streams of t)`; the output predicts token t+2. A
drafted token goes in the same way, with the network's own last output in g's place. Parameter names are those of the
checkpoint format. Who attends to what is the caller's business (see `layers/decoder.py`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.base import DraftNetwork
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.decoder import DecoderLayer
from speculators.layers.rotary import Rotary, Tables
from speculators.verifiers.weights import VerifierWeights

INITIAL_STD = 0.02
"""Standard deviation of matrices that do not start as the verifier's."""


class Eagle3Network(DraftNetwork):
    """The draft. `d2t` int64 [Vd] (offsets) and `t2d` bool [V] are buffers, only when the vocabulary is reduced."""

    config: Eagle3Config
    attends: ClassVar[bool] = True
    d2t: torch.Tensor
    t2d: torch.Tensor

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.config = config
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.input_norm = nn.RMSNorm(config.aux_width, eps=eps) if config.norm_before_fc else None
        streams = len(config.aux_layers) if config.fc_norm else 0
        self.fc_norm = (
            nn.ModuleList(nn.RMSNorm(config.stream_width, eps=eps) for _ in range(streams)) if streams else None
        )
        self.fc = nn.Linear(config.aux_width, hidden, bias=False)
        self.layers = nn.ModuleList(
            DecoderLayer(
                hidden_size=hidden,
                intermediate_size=config.intermediate_size,
                heads=config.attention_heads,
                key_value_heads=config.key_value_heads,
                head_dim=config.head_dim,
                eps=eps,
                reads_embeddings=number == 0,
                norm_before_residual=config.norm_before_residual,
            )
            for number in range(config.layers)
        )
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        self.rotary = Rotary(config.head_dim, config.rope, config.max_position_embeddings)
        if config.has_vocabulary_map:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    @property
    def target_ids(self) -> torch.Tensor | None:
        """The verifier's id of every draft id, int64 [Vd]; None when the two vocabularies are the same."""
        if not self.config.has_vocabulary_map:
            return None
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    @property
    def head_weight(self) -> torch.Tensor:
        """The output head's weight [Vd, h]."""
        weight = self.lm_head.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101  a linear layer's weight
        return weight

    def fuse(self, aux: torch.Tensor) -> torch.Tensor:
        """g [..., h] from the verifier's streams `aux` [..., A*h]."""
        if self.input_norm is not None:
            aux = self.input_norm(aux)
        if self.fc_norm is not None:
            parts = aux.chunk(len(self.fc_norm), -1)
            aux = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        result: torch.Tensor = self.fc(aux)
        return result

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., h] of verifier ids int64 [...]."""
        return functional.embedding(ids, self.embed_tokens.weight)

    def tables(self, positions: torch.Tensor, last: int | None = None) -> Tables:
        """Rotary tables of `positions` int64 [...]; step j of the chain at t is at position t + j."""
        result: Tables = self.rotary(positions, last)
        return result

    def layer(self, number: int) -> DecoderLayer:
        """Decoder layer `number`, whose halves training calls one by one."""
        found = self.layers[number]
        assert isinstance(found, DecoderLayer)  # noqa: S101  what the constructor put there
        return found

    def qkv(
        self, layer: int, embeddings: torch.Tensor | None, state: torch.Tensor, tables: Tables
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [..., heads, d], keys and values [..., kv, d] and the residual [..., h] of one layer.

        `embeddings` [..., h] matter to layer 0 only; `state` [..., h] is g, the last step's output, or the stream of
        the layer below; `tables` are the rotary tables of the positions.
        """
        block = self.layer(layer)
        x, residual = block.enter(embeddings, state)
        return block.queries(x, tables), *block.keys_values(x, tables), residual

    def finish_layer(self, layer: int, attended: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The stream after `layer` [..., h], from attention's result [..., heads, d] and the residual of `qkv`."""
        return self.layer(layer).leave(attended, residual)

    def next_state(self, out: torch.Tensor) -> torch.Tensor:
        """What the next step reads in g's place: the last layer's `out` [..., h], normed if `norm_output`."""
        result: torch.Tensor = self.norm(out) if self.config.norm_output else out
        return result

    def logits(self, out: torch.Tensor) -> torch.Tensor:
        """Logits [..., Vd] over the draft's vocabulary from the last layer's `out` [..., h]."""
        result: torch.Tensor = self.lm_head(self.norm(out))
        return result

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """Fill all parameters: embedding, head (its rows of the draft's vocabulary) and final norm the verifier's,
        other matrices normal with std 0.02, other norms one.

        Starting the layer from the verifier's last one was measured, and is worse.
        """
        for parameter in self.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, INITIAL_STD, generator=generator)
            else:
                parameter.fill_(1.0)
        self.map_vocabulary(vocabulary)
        rows = self.target_ids
        self.embed_tokens.weight.copy_(weights.embedding)
        self.lm_head.weight.copy_(weights.head if rows is None else weights.head[rows])
        self.norm.weight.copy_(weights.norm)


Network = Eagle3Network
