"""The shape of a DFlash draft, and how it stands in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speculators.algorithms.decoder_layout import verifier_sizes, written_sizes
from speculators.errors import UsageError
from speculators.verifiers.layer_ids import spread_layers

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.recipe.shapes.blocks import BlockOptions
    from speculators.verifiers.facts import VerifierFacts


_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class DFlashConfig:
    """Everything that decides the draft's parameters and its forward pass.

    `aux_layers` are ids of residual streams *entering* a verifier layer; `rope` has the form of transformers 5's
    `rope_parameters`; `mask_token_id` is a verifier id. A block is the anchor, which is known, and `block_size` - 1
    masks; with `sample_from_anchor` the anchor's slot predicts too, the token after it.

    Queries of `windowed_layers` see the last `window` positions alone, their own included; the places of a block see
    each other in all layers but, if `window_is_causal`, in those, where they see what is before them. (Of a query at i,
    keys with i - j < window: the window is vLLM's.)

    An algorithm with more on these layers has fields of its own, under the names of their keys in config.json
    (`OWN_KEYS`), and says in `own_fields` what a recipe makes of them.
    """

    ALGORITHM: ClassVar[str] = "dflash"
    ARCHITECTURE: ClassVar[str] = "DFlashDraftModel"
    OWN_KEYS: ClassVar[tuple[str, ...]] = ()

    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    aux_layers: tuple[int, ...]
    rope: Mapping[str, Any]
    rms_norm_eps: float
    max_position_embeddings: int
    layers: int
    block_size: int
    mask_token_id: int
    sample_from_anchor: bool = False
    window: int | None = None
    windowed_layers: tuple[int, ...] = ()
    window_is_causal: bool = True

    def __post_init__(self) -> None:
        if bool(self.windowed_layers) != (self.window is not None):
            raise UsageError("a draft has a window where layers have one, and layers with one where it has a size")
        if any(not 0 <= layer < self.layers for layer in self.windowed_layers):
            raise UsageError(f"a layer with a window does not exist: the draft has {self.layers}")
        if not self.aux_layers or self.layers < 1 or self.block_size < 2:
            raise UsageError("a block draft needs a layer, one of the verifier's streams, and blocks of two tokens")
        if self.draft_vocab_size > self.vocab_size:
            raise UsageError(
                f"`draft_vocab_size` is {self.draft_vocab_size}, more than the verifier's {self.vocab_size} tokens"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise UsageError(f"`mask_token_id` is {self.mask_token_id}, the verifier has {self.vocab_size} tokens")

    @property
    def aux_width(self) -> int:
        """Width of the verifier's features: its streams side by side."""
        return len(self.aux_layers) * self.hidden_size

    @property
    def has_vocabulary_map(self) -> bool:
        """Whether draft ids differ from verifier ids, so that `d2t`, `t2d` and a head of its own exist."""
        return self.draft_vocab_size != self.vocab_size

    @property
    def proposed(self) -> int:
        """Tokens that a block proposes."""
        return self.block_size if self.sample_from_anchor else self.block_size - 1

    @classmethod
    def for_verifier(
        cls, facts: VerifierFacts, options: BlockOptions, *, draft_vocab_size: int, aux_layers: Sequence[int]
    ) -> Self:
        """The draft that a recipe's `algorithm` section asks for: layers as large as the verifier's, but Qwen3's."""
        mask = options.mask_token_id
        return cls(
            **verifier_sizes(facts),
            layers=options.layers,
            block_size=options.block_size,
            mask_token_id=facts.vocab_size - 1 if mask is None else mask,
            draft_vocab_size=draft_vocab_size,
            aux_layers=tuple(aux_layers),
            **_window_fields(options),
            **cls.own_fields(options),
        )

    @classmethod
    def own_fields(cls, options: Any) -> dict[str, Any]:
        """What a recipe's section says of the fields beside the layers'."""
        return {}

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json, with every key that any reader looks for."""
        rope = dict(self.rope)
        return {
            "architectures": [self.ARCHITECTURE],
            "speculators_model_type": self.ALGORITHM,
            "transformer_layer_config": {
                "model_type": "qwen3",
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.attention_heads,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": self.head_dim,
                "vocab_size": self.vocab_size,
                "hidden_act": "silu",
                "rms_norm_eps": self.rms_norm_eps,
                "rope_parameters": rope,
                "rope_theta": rope.get("rope_theta", 10000.0),
                "max_position_embeddings": self.max_position_embeddings,
                "attention_bias": False,
                "tie_word_embeddings": False,
                **self._layer_types(),
            },
            "draft_vocab_size": self.draft_vocab_size,
            "block_size": self.block_size,
            "aux_hidden_state_layer_ids": list(self.aux_layers),
            "mask_token_id": self.mask_token_id,
            "sample_from_anchor": self.sample_from_anchor,
            "sliding_window_non_causal": not (self.windowed_layers and self.window_is_causal),
            "target_hidden_size": None,
            "tie_word_embeddings": False,
            **{key: getattr(self, key) for key in self.OWN_KEYS},
        }

    def _layer_types(self) -> dict[str, Any]:
        """Which layers have the window, as transformers says it; nothing where none has."""
        if not self.windowed_layers:
            return {}
        return {
            "layer_types": [_SLIDING if layer in self.windowed_layers else _FULL for layer in range(self.layers)],
            "sliding_window": self.window,
            "use_sliding_window": True,
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Self:
        """The shape of a draft from its config.json.

        Raises UsageError when a key is missing that nothing can stand in for, or says what this draft has not.
        """
        missing = [key for key in cls.OWN_KEYS if key not in config]
        if missing:
            raise UsageError(f"config.json of the draft has no key {missing[0]!r}")
        return cls(**written_fields(config), **{key: config[key] for key in cls.OWN_KEYS})


Config = DFlashConfig


def written_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a block draft that a config.json says; what this draft has not is refused."""
    try:
        layer = config["transformer_layer_config"]
        if (layer.get("hidden_act") or "silu") != "silu":
            raise UsageError(f"a block draft's activation is silu, not {layer['hidden_act']!r}")
        if config.get("target_hidden_size") not in (None, layer["hidden_size"]):
            raise UsageError(
                "a block draft narrower or wider than its verifier (`target_hidden_size`) is not supported"
            )
        return {
            **written_sizes(config, default_theta=1000000.0),  # what vLLM takes an absent one to be
            "draft_vocab_size": config.get("draft_vocab_size") or layer["vocab_size"],
            "aux_layers": tuple(config["aux_hidden_state_layer_ids"]),
            "layers": layer["num_hidden_layers"],
            "block_size": config["block_size"],
            "mask_token_id": config["mask_token_id"],
            "sample_from_anchor": config.get("sample_from_anchor", False),
            **_written_window(config, layer),
        }
    except KeyError as error:
        raise UsageError(f"config.json of the draft has no key {error}") from error


def _window_fields(options: BlockOptions) -> dict[str, Any]:
    """The fields about a window, as a recipe says them."""
    asked = options.sliding_window
    if asked is None:
        return {}
    return {"window": asked.size, "windowed_layers": options.windowed_layers, "window_is_causal": asked.causal}


def _written_window(config: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields about a window that a config.json says; kinds of layers that there are not are refused."""
    kinds = list(layer.get("layer_types") or [_FULL] * layer["num_hidden_layers"])
    if len(kinds) != layer["num_hidden_layers"] or set(kinds) - {_SLIDING, _FULL}:
        raise UsageError(f"`layer_types` of a block draft says {_SLIDING} or {_FULL} of every layer, not {kinds}")
    windowed = tuple(number for number, kind in enumerate(kinds) if kind == _SLIDING)
    if not windowed:
        return {}
    if not isinstance(layer.get("sliding_window"), int):
        raise UsageError(
            "the draft has layers of `sliding_attention` and no `sliding_window` that says how far they see"
        )
    is_causal = not config.get("sliding_window_non_causal", True)
    return {"window": layer["sliding_window"], "windowed_layers": windowed, "window_is_causal": is_causal}


def verifier_layers(options: BlockOptions, layers: int) -> tuple[int, ...]:
    """Ids of the streams that the draft of a recipe reads of a verifier with so many layers."""
    wanted = options.aux_layers
    return spread_layers(options.layers, layers) if wanted == "auto" else tuple(wanted)


def trained_parameters(options: BlockOptions, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes; embeddings and head are the verifier's."""
    hidden = facts["hidden_size"]
    layer = (4 * hidden + 3 * facts.get("intermediate_size", 4 * hidden)) * hidden
    return options.layers * (layer + hidden * hidden)
