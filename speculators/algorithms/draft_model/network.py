"""A causal language model of the families Llama, Mistral, Qwen2 and Qwen3, computed as transformers computes them.

Parameter names are those of the checkpoint format, which are the model's own without `model.` before them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.base import DraftNetwork
from speculators.algorithms.draft_model.config import DraftModelConfig
from speculators.algorithms.draft_model.layout import plain_name, tensors
from speculators.algorithms.draft_model.source import check_tokens, read_config
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import UsageError
from speculators.layers.decoder import DecoderLayer
from speculators.layers.products import rounded_weight
from speculators.layers.rotary import Rotary, Tables
from speculators.verifiers.weights import VerifierWeights, read_tensors, tensor_files

INITIAL_STD = 0.02


class DraftModelNetwork(DraftNetwork):
    """Embedding, decoder layers, final norm and head; a tied head is the embedding, and no parameter of its own."""

    config: DraftModelConfig
    attends: ClassVar[bool] = True

    def __init__(self, config: DraftModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                heads=config.attention_heads,
                key_value_heads=config.key_value_heads,
                head_dim=config.head_dim,
                eps=config.rms_norm_eps,
                norms_heads=config.norms_heads,
                attention_biases=config.input_biases,
                output_bias=config.output_bias,
                mlp_biases=config.mlp_biases,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.rotary = Rotary(config.head_dim, config.rope, config.max_position_embeddings)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters, and of the residual stream."""
        return self.norm.weight.dtype

    @property
    def head_weight(self) -> torch.Tensor:
        """The head's weight [V, h], with its gradient."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        assert isinstance(weight, torch.Tensor)  # noqa: S101  a layer's weight
        return weight

    def rounded_head(self, dtype: torch.dtype) -> torch.Tensor:
        """The head's weight in the type of the products, `dtype`, without a gradient."""
        if self.lm_head is None:
            return self.embed_tokens.weight.detach().to(dtype)
        return rounded_weight(self.lm_head)

    def layer(self, number: int) -> DecoderLayer:
        """Decoder layer `number`."""
        found = self.layers[number]
        assert isinstance(found, DecoderLayer)  # noqa: S101  what the constructor put there
        return found

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., h] of tokens int64 [...]."""
        return functional.embedding(ids, self.embed_tokens.weight)

    def tables(self, positions: torch.Tensor, last: int | None = None) -> Tables:
        """Rotary tables of `positions` int64 [...], none above `last`."""
        result: Tables = self.rotary(positions, last)
        return result

    @classmethod
    def started(
        cls,
        config: DraftModelConfig,
        weights: VerifierWeights,
        vocabulary: DraftVocabulary,
        generator: torch.Generator,
    ) -> DraftModelNetwork:
        """The model that the recipe names, or one of random weights.

        Raises UsageError when the named one is not whole, or has other tokens than the verifier.
        """
        if config.source is None:
            return super().started(config, weights, vocabulary, generator)
        directory = config.source.directory()
        if weights.directory is not None:
            check_tokens(directory, weights.directory)
        told = DraftModelConfig.of_model(read_config(directory), config.source.name, config.vocab_size, config.source)
        network = cls(told)
        network.load_state_dict({name: one.float() for name, one in read_model(told, directory).items()})
        return network

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """Fill all parameters: matrices normal with std 0.02, norms one."""
        for parameter in self.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, INITIAL_STD, generator=generator)
            else:
                parameter.fill_(1.0)


Network = DraftModelNetwork


def read_model(config: DraftModelConfig, directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model's folder under the names of our format, in the types they have.

    Raises UsageError for one that is missing, of another shape, or quantized.
    """
    shapes, names = tensors(config.to_config_json()), tensor_files(directory)
    places = {ours: plain_name(ours) for ours in shapes}
    missing = [theirs for theirs in places.values() if theirs not in names]
    if missing:
        raise UsageError(f"{directory} is not whole: it has no {missing[0]}")
    found = read_tensors(directory, places.values())
    read = {ours: found[theirs] for ours, theirs in places.items()}
    for ours, one in read.items():
        if tuple(one.shape) != shapes[ours]:
            raise UsageError(
                f"{directory}: {places[ours]} has the shape {list(one.shape)}, but config.json makes it "
                f"{list(shapes[ours])}"
            )
        if not one.is_floating_point() or one.dtype.itemsize < 2:
            kind = str(one.dtype).removeprefix("torch.")
            raise UsageError(f"{directory}: {places[ours]} is {kind}; a quantized model cannot be trained")
    return read
