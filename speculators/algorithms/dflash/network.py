"""DFlash's network: decoder layers whose queries are a block, and whose further keys are the verifier's states.

The context at t is `c_t = hidden_norm(fc(streams of t))`; every layer makes keys and values of it, and it has no
queries. A block at position a is the embedding of the newest token, x_a, and those of mask tokens at a + 1, a + 2,
...; its queries see the context before a and all of the block, or in some layers a window of both. Slot k predicts
x_{a+k} (with `sample_from_anchor`, x_{a+k+1}). Parameter names are those of the checkpoint format; embeddings, and a
head over the whole vocabulary, are the verifier's own and in no checkpoint.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.base import DraftNetwork
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.block_attention import Window
from speculators.layers.decoder import DecoderLayer
from speculators.layers.rotary import Rotary, Tables
from speculators.verifiers.weights import VerifierWeights

Place = Literal["attention_conv", "mlp_conv"]
"""A sublayer of a layer, by the name of what drafts on DFlash's layers may put around it."""

INITIAL_STD = 0.02
"""Standard deviation of matrices at the start."""


class DFlashNetwork(DraftNetwork):
    """The draft. `d2t` int64 [Vd] (offsets) and `t2d` bool [V] are buffers, only when the vocabulary is reduced."""

    config: DFlashConfig
    shares_weights: ClassVar[bool] = True
    computes_layers_in_halves: ClassVar[bool] = False
    attends: ClassVar[bool] = True
    d2t: torch.Tensor
    t2d: torch.Tensor
    embedding: torch.Tensor
    head: torch.Tensor

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(config.aux_width, hidden, bias=False)
        self.hidden_norm = nn.RMSNorm(hidden, eps=eps)
        self.layers = nn.ModuleList(
            DecoderLayer(
                hidden_size=hidden,
                intermediate_size=config.intermediate_size,
                heads=config.attention_heads,
                key_value_heads=config.key_value_heads,
                head_dim=config.head_dim,
                eps=eps,
                norms_heads=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.rotary = Rotary(config.head_dim, config.rope, config.max_position_embeddings)
        self.register_buffer("embedding", torch.empty(0, hidden), persistent=False)
        if config.has_vocabulary_map:
            self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        else:
            self.register_buffer("head", torch.empty(0, hidden), persistent=False)

    @property
    def target_ids(self) -> torch.Tensor | None:
        """The verifier's id of every draft id, int64 [Vd]; None when the two vocabularies are the same."""
        if not self.config.has_vocabulary_map:
            return None
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    @property
    def head_weight(self) -> torch.Tensor:
        """The output head's weight [Vd, h]: the verifier's rows."""
        return self.lm_head.weight if self.config.has_vocabulary_map else self.head

    def attach(self, weights: VerifierWeights) -> None:
        """Take the verifier's embedding and, with its whole vocabulary, its head."""
        like = self.norm.weight
        self.embedding = weights.embedding.to(like)
        if not self.config.has_vocabulary_map:
            tied = weights.head is weights.embedding
            self.head = self.embedding if tied else weights.head.to(like)

    def context(self, aux: torch.Tensor) -> torch.Tensor:
        """c [..., h] from the verifier's streams `aux` [..., A*h]."""
        result: torch.Tensor = self.hidden_norm(self.fc(aux))
        return result

    def block(self, anchors: torch.Tensor, width: int) -> torch.Tensor:
        """What the first layer reads: embeddings [n, width, h] of `anchors` int64 [n] and of masks."""
        ids = anchors[:, None].expand(-1, width).clone()
        ids[:, 1:] = self.config.mask_token_id
        return functional.embedding(ids, self.embedding)

    def tables(self, positions: torch.Tensor, last: int | None = None) -> Tables:
        """Rotary tables of `positions` int64 [...]."""
        result: Tables = self.rotary(positions, last)
        return result

    def layer(self, number: int) -> DecoderLayer:
        """Decoder layer `number`."""
        found = self.layers[number]
        assert isinstance(found, DecoderLayer)  # noqa: S101  what the constructor put there
        return found

    def window(self, layer: int) -> Window | None:
        """What queries of a layer do not see of what is before and, perhaps, after them; None: they see it all."""
        config = self.config
        if config.window is None or layer not in config.windowed_layers:
            return None
        return Window(config.window, config.window_is_causal)

    def mix_in(self, layer: int, place: Place, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a sublayer of a layer reads of a block, for `x` [n, B, h]; and what `mix_out` has to know."""
        return x, None

    def mix_out(self, layer: int, place: Place, y: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """What a sublayer that gave `y` [n, B, h] adds to the stream."""
        return y

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """Fill all parameters: matrices normal with std 0.02, norms one, the last norm and the head the verifier's."""
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, INITIAL_STD, generator=generator)
        self.attach(weights)
        self.norm.weight.copy_(weights.norm)
        self.map_vocabulary(vocabulary)
        if self.config.has_vocabulary_map:
            self.lm_head.weight.copy_(weights.head[self.target_ids])


Network = DFlashNetwork
