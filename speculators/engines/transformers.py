"""The verifier, run by transformers: any causal language model of theirs, over our cache of ragged slots.

The model's own code computes the layers; we bring the cache, the attention (registered with transformers by name, so
that the model builds no masks of its own) and hooks that read the residual stream.

Layer ids: L is the residual stream *entering* decoder layer L, transformers' `hidden_states[L]`; L = number of layers
is the stream after the last layer and *before* the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, Cache

from speculators.errors import MachineError
from speculators.layers.packed_linear import PackedLinear, can_pack, pack_linears
from speculators.layers.slot_cache import Place, SlotCache

ATTENTION = "speculators_slots"
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


@dataclass(frozen=True)
class VerifierOutput:
    """What one forward pass gives.

    `logits` float32 [B, q or 1, V] or None, `aux` [B, q, A*h] (the requested streams side by side, in the order asked
    for) or None, `last` [B, q, h]: the stream before the final norm.
    """

    logits: torch.Tensor | None
    aux: torch.Tensor | None
    last: torch.Tensor


class VerifierModel:
    """A causal language model that reads B tokens-by-q at the ends of B slots of a `SlotCache`."""

    def __init__(self, model: Any, aux_layers: Sequence[int] = (), compute_dtype: torch.dtype | None = None) -> None:
        """Wrap a transformers model loaded with `attn_implementation=ATTENTION`; use `load` for a directory."""
        self.model = model
        self.model.eval()
        self.config: Any = self.model.config.get_text_config()
        self.aux_layers = tuple(aux_layers)
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        self.compute_dtype = compute_dtype or self.dtype
        self._decoder: Any = self.model.get_decoder()
        self._layers: nn.ModuleList = self._decoder.layers
        self._norm = _final_norm(self._decoder)
        self._streams: dict[int, torch.Tensor] = {}
        wrong = [layer for layer in self.aux_layers if not 0 <= layer <= len(self._layers)]
        if wrong:
            raise ValueError(f"the verifier has no layer {wrong[0]}; ids go from 0 to {len(self._layers)}")
        for layer in {*self.aux_layers, len(self._layers)}:
            target = self._norm if layer == len(self._layers) else self._layers[layer]
            target.register_forward_pre_hook(self._reader(layer), with_kwargs=True)
        self._bridge = _Bridge()
        packed = any(isinstance(module, PackedLinear) for module in self.model.modules())
        self._needs_autocast = self.compute_dtype != self.dtype and not packed

    @classmethod
    def load(
        cls,
        directory: Path | str,
        dtype: str | torch.dtype = "auto",
        device: str = "cpu",
        threads: int | None = None,
        aux_layers: Sequence[int] = (),
        packed: bool = True,
        trust_remote_code: bool = False,
        compute_dtype: str | torch.dtype | None = None,
    ) -> VerifierModel:
        """Load a Hugging Face checkpoint directory.

        `dtype` is the type of weights and residual stream ("auto": the checkpoint's), `compute_dtype` that of the
        matrix products when it differs (bfloat16 products around a float32 stream). `device` may be "auto": the first
        of cuda, mps, cpu that is there. `threads` sets torch's number of threads for the process. `packed` lays the
        weights out for oneDNN, on a CPU that has it; elsewhere it does nothing.

        Raises MachineError for a model whose attention cannot be replaced.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        place = choose_device(device)
        model = AutoModelForCausalLM.from_pretrained(
            str(directory),
            dtype=as_dtype(dtype) or "auto",
            trust_remote_code=trust_remote_code,
            attn_implementation=ATTENTION,
            local_files_only=True,
        )
        if not model._supports_attention_backend:
            raise MachineError(
                f"the transformers engine cannot run {type(model).__name__}: its attention cannot be replaced"
            )
        model.requires_grad_(requires_grad=False)
        model.to(place)
        products = as_dtype(compute_dtype) or model.dtype
        if packed and can_pack(products, place):
            pack_linears(model, products)
        return cls(model, aux_layers, products)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self._layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.config.vocab_size)

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` sequences of at most `capacity` tokens."""
        heads = self.config.num_attention_heads
        return SlotCache(
            layers=self.layers,
            slots=slots,
            kv_heads=getattr(self.config, "num_key_value_heads", None) or heads,
            head_dim=getattr(self.config, "head_dim", None) or self.config.hidden_size // heads,
            capacity=capacity,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        cache: SlotCache,
        rows: torch.Tensor,
        logits: Literal["all", "last"] | None = "last",
    ) -> VerifierOutput:
        """Read `input_ids` [B, q] at the ends of slots `rows` [B] int64, and advance those slots by q.

        `logits`: of all q positions, of the last one, or none (the head is then not computed). A row with fewer than
        q tokens is padded on the right with any token, and the caller crops its slot afterwards.
        """
        place = cache.place(rows, input_ids.shape[1])
        self._bridge.open(cache, place, cache.mask(place, place.width))
        self._streams.clear()
        arguments = {
            "input_ids": input_ids.to(self.device),
            "position_ids": place.positions,
            "past_key_values": self._bridge,
            "use_cache": True,
            "bridge": self._bridge,
        }
        with self._products():
            if logits is None:
                scores = None
                self._decoder(**arguments)
            else:
                scores = self.model(**arguments, logits_to_keep=0 if logits == "all" else 1).logits.float()
        cache.advance(rows, place.width)
        streams = self._streams
        aux = torch.cat([streams[layer] for layer in self.aux_layers], dim=-1) if self.aux_layers else None
        return VerifierOutput(scores, aux, streams[len(self._layers)])

    @torch.no_grad()
    def argmax(self, last: torch.Tensor) -> torch.Tensor:
        """The verifier's greedy next token after each stream of `last` [n, h] (before the final norm): int64 [n].

        Scaling and soft-capping of logits, where a model has them, keep the order and are left out.
        """
        with self._products():
            best: torch.Tensor = self.model.get_output_embeddings()(self._norm(last)).argmax(dim=-1)
        return best

    def _products(self) -> Any:
        # Packed weights bring their own type; autocast would change attention's as well.
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self._needs_autocast)

    def _reader(self, layer: int) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._streams[layer] = args[0] if args else kwargs["hidden_states"]

        return read


class _Bridge(Cache):  # type: ignore[misc]
    """What the model's code takes for its cache: hands keys and values to the slots of the current pass."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.cache: SlotCache
        self.place: Place
        self.mask: torch.Tensor | None = None

    def open(self, cache: SlotCache, place: Place, mask: torch.Tensor | None) -> None:
        """Point at the slots that the coming pass reads and writes."""
        self.cache, self.place, self.mask = cache, place, mask

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.write(layer_idx, self.place, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.place.starts)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    bridge: _Bridge,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query [B, heads, q, d] over key, value [B, kv, L, d]; returns [B, q, heads, d]."""
    if softcap is not None:
        raise MachineError("the transformers engine cannot run models that cap attention scores")
    batch, heads, width, size = query.shape
    groups = heads // key.shape[1]
    mask = bridge.mask
    if sliding_window is not None and key.shape[2] > sliding_window:
        mask = _windowed(bridge.place, sliding_window, key.device)
    if width > 1 and mask is None:
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1
        )
    else:
        # The query heads that share a key head become more queries of it: no key is ever repeated in memory.
        packed = query.reshape(batch, key.shape[1], groups * width, size)
        if mask is not None and groups > 1:
            mask = mask.repeat(1, 1, groups, 1)
        out = nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        out = out.reshape(batch, heads, width, value.shape[-1])
    return out.transpose(1, 2), None


def _windowed(place: Place, window: int, device: torch.device) -> torch.Tensor:
    """The mask of a layer that sees `window` positions, itself included: bool [B, 1, q, L]."""
    key, query = torch.arange(place.end, device=device), place.positions[:, :, None]
    return ((key <= query) & (key > query - window))[:, None]


def _final_norm(decoder: nn.Module) -> nn.Module:
    for name in FINAL_NORMS:
        if isinstance(norm := getattr(decoder, name, None), nn.Module):
            return norm
    raise MachineError(f"the transformers engine finds no final norm in {type(decoder).__name__}")


def as_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """A torch type by its recipe name; None for "auto", "verifier" and None."""
    if name is None or isinstance(name, torch.dtype):
        return name
    if name in ("auto", "verifier"):
        return None
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first of cuda, mps, cpu that is there."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


AttentionInterface.register(ATTENTION, _attend)
