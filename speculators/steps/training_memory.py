"""The most memory that training an EAGLE-3 draft takes, counted tensor by tensor from sizes alone.

What autograd keeps of each operation follows from `algorithms/eagle3/objective.py`; a test counts the tensors of real
steps and holds this to them. Sizes are elements unless a name says bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from speculators.recipe.shapes.eagle3 import Eagle3
from speculators.recipe.shapes.recipe import Algorithm
from speculators.recipe.shapes.train import AdamW8bit, Muon, Train

FLOAT = 4
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, CHUNK_POSITIONS, CHUNK_TENSORS = 1 << 20, 1 << 23, 128, 7
"""The first three are those of `losses/chunked.py`, which planning cannot import; a test holds them equal."""
PLAIN_SCORES = 1 << 25
"""That of `layers/attention.py`."""


@dataclass(frozen=True)
class Shape:
    """A draft's sizes; `head` is the width of all query heads together, `key_value` of all key heads."""

    vocabulary: int
    draft_vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    head: int
    key_value: int
    head_dim: int
    streams: int
    layers: int

    @property
    def matrices(self) -> tuple[int, int]:
        """Parameters of `fc`, and of all decoder layers."""
        inputs = 2 * self.hidden + (self.layers - 1) * self.hidden
        attention = inputs * (self.head + 2 * self.key_value) + self.layers * self.head * self.hidden
        return self.streams * self.hidden**2, attention + self.layers * 3 * self.hidden * self.intermediate


@dataclass(frozen=True)
class Load:
    """The heaviest batch: tokens, chains, and `scores`, the sum over its documents of chains times tokens.

    `longest` is the largest of these products.
    """

    tokens: float
    chains: float
    scores: float
    longest: float


@dataclass(frozen=True)
class Options:
    """What a recipe says; `product` and `state` are bytes of an element of products and of stored states."""

    steps: int
    product: int
    state: int
    trains_embeddings: bool
    trains_head: bool
    norms_features: bool
    norms_output: bool
    has_mass: bool
    moments: int
    """Running means of every parameter's gradient."""
    moment_bytes: float
    recomputes: bool
    chunk: int
    """Positions whose whole distributions the loss holds at a time."""


def estimated(
    algorithm: Algorithm, train: Train, facts: Mapping[str, float], *, product: int, on_gpu: bool = False
) -> int | None:
    """Bytes of tensors, from a recipe and what is known while planning; None as long as the verifier is not known.

    Before there are tokens, a batch counts as one document that is an answer from its beginning to its end.
    """
    if not isinstance(algorithm, Eagle3) or "hidden_size" not in facts or "vocab_size" not in facts:
        return None
    vocabulary, hidden = int(facts["vocab_size"]), int(facts["hidden_size"])
    head_dim, heads = int(facts["head_dim"]), int(facts["attention_heads"])
    shape = Shape(
        vocabulary=vocabulary,
        draft_vocabulary=algorithm.draft_vocab_size or vocabulary,
        hidden=hidden,
        intermediate=int(facts["intermediate_size"]),
        heads=heads,
        head=heads * head_dim,
        key_value=int(facts["key_value_heads"]) * head_dim,
        head_dim=head_dim,
        streams=3 if algorithm.aux_layers == "auto" else len(algorithm.aux_layers),
        layers=algorithm.layers,
    )
    tokens = facts.get("batch_tokens", train.tokens_per_step)
    chains = facts.get("batch_chains", tokens)
    load = Load(tokens, chains, facts.get("batch_scores", tokens * chains), facts.get("batch_longest", tokens * chains))
    loss, is_muon = algorithm.loss, isinstance(train.optimizer, Muon)
    has_mass = algorithm.teacher == "unrenormalized" or any((loss.tv, loss.nla, loss.lk))
    elements = GPU_CHUNK_ELEMENTS if on_gpu else CHUNK_ELEMENTS
    options = Options(
        steps=algorithm.training_time_test.steps,
        product=product,
        state=int(facts.get("state_bytes", 2)),
        trains_embeddings=algorithm.train_embeddings,
        trains_head=algorithm.train_head,
        norms_features=algorithm.normalization.before_fc or algorithm.normalization.per_aux_layer,
        norms_output=algorithm.normalization.output,
        has_mass=has_mass and shape.draft_vocabulary < vocabulary,
        moments=1 if is_muon else 2,
        moment_bytes=1 + FLOAT / 256 if isinstance(train.optimizer, AdamW8bit) else FLOAT,
        recomputes=train.execution.recompute,
        chunk=train.execution.loss_positions or max(CHUNK_POSITIONS, elements // shape.draft_vocabulary),
    )
    return training_memory(shape, load, options)


def training_memory(shape: Shape, load: Load, options: Options) -> int:
    """Bytes that tensors hold at the worst moment of a training."""
    fc, layers = shape.matrices
    head, embedding = shape.draft_vocabulary * shape.hidden, shape.vocabulary * shape.hidden
    trained = fc + layers + options.trains_head * head + options.trains_embeddings * embedding
    is_rounded = options.product < FLOAT
    resident: float = FLOAT * (fc + layers + head + embedding) + options.product * head
    resident += options.has_mass * options.product * embedding
    resident += round(options.moments * options.moment_bytes * trained)
    resident += 2 * _batch(shape, load, options)  # one is computed, the next one is read
    building: float = FLOAT * (fc + layers + head + 3 * embedding)
    held: float = _activations(shape, load, options) + FLOAT * options.trains_head * head
    held += is_rounded * options.product * (fc + layers + head)
    return round(max(building, resident + FLOAT * trained, resident + held + _passing(shape, load, options)))


def _batch(shape: Shape, load: Load, options: Options) -> float:
    return load.tokens * (options.state * (shape.streams + 1) * shape.hidden + 17)


def _activations(shape: Shape, load: Load, options: Options) -> float:
    """Bytes kept from the forward pass for the backward pass, with the gradients that the loss leaves."""
    b, h = options.product, shape.hidden
    wide = shape.streams * h
    at_tokens: float = wide * (b + 2 * FLOAT * options.norms_features)
    at_tokens += 4 * FLOAT * h + 2 * h * b + 2 * shape.key_value * b + 2 * FLOAT * shape.head_dim
    below = shape.layers - 1  # these have queries and MLP at every token
    at_tokens += below * _body(shape, options)
    first = 2 * h * b + _body(shape, options)
    later: float = (3 + 2 * options.norms_output) * FLOAT * h + 2 * FLOAT * shape.head_dim
    later += shape.layers * (2 * h * b + _body(shape, options) + 2 * shape.key_value * b)
    own = options.steps * (options.steps - 1) / 2 * shape.layers * 2 * shape.key_value * b
    judged = options.steps * 4 * FLOAT * h + options.state * h
    at_chains = first + (options.steps - 1) * later + own + judged
    kept = load.scores if shape.heads * load.longest <= PLAIN_SCORES else 0.0
    probabilities = shape.heads * kept * b * (options.steps * shape.layers)
    return load.tokens * at_tokens + load.chains * at_chains + probabilities


def _body(shape: Shape, options: Options) -> float:
    """Bytes kept of one row of a layer: queries, attention's result, the norm between, and the MLP."""
    b, h = options.product, shape.hidden
    copies = 2 if b < FLOAT else 1
    inner = h * b if options.recomputes else copies * h * b + 4 * shape.intermediate * b
    return 2 * shape.head * b + 2 * FLOAT * h + inner + FLOAT * h


def _passing(shape: Shape, load: Load, options: Options) -> float:
    """The largest of what is there only for a moment: a chunk of the loss, a layer's gradients, an attention."""
    chunk = min(options.chunk, load.chains) * shape.draft_vocabulary * FLOAT * CHUNK_TENSORS
    backward = FLOAT * shape.matrices[1] + load.chains * (4 * shape.intermediate * options.product)
    attention = 2 * shape.heads * load.longest * options.product
    return max(chunk, backward, attention)
