"""The verifier, run by transformers: any causal language model of theirs, over our cache of ragged slots.

The model's own code computes the layers; we bring the cache, the attention (registered with transformers by name, so
that the model builds no masks of its own) and hooks that read the residual stream. Decoders of the common family run
without that code (`lean.py`), after a probe has shown that the numbers are the same.

Layer ids: L is the residual stream *entering* decoder layer L, transformers' `hidden_states[L]`; L = number of layers
is the stream after the last layer and *before* the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AutoModelForCausalLM, Cache

from speculators.engines.attention import Pass, attend
from speculators.engines.lean import LeanDecoder
from speculators.errors import MachineError
from speculators.layers.packed_linear import can_pack, pack_linears
from speculators.layers.slot_cache import SlotCache, whole

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

    def __init__(
        self, model: Any, aux_layers: Sequence[int] = (), compute_dtype: torch.dtype | None = None, lean: bool = True
    ) -> None:
        """Wrap a transformers model loaded with `attn_implementation=ATTENTION`; use `load` for a directory.

        `lean`: run the layers by `LeanDecoder` when that is right for this model. The model is then taken apart.
        """
        self.model = model.eval()
        self.config: Any = self.model.config.get_text_config()
        self.aux_layers = tuple(aux_layers)
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        self.compute_dtype = compute_dtype or self.dtype
        self._decoder: Any = self.model.get_decoder()
        self._norm = _final_norm(self._decoder)
        wrong = [layer for layer in self.aux_layers if not 0 <= layer <= self.layers]
        if wrong:
            raise ValueError(f"the verifier has no layer {wrong[0]}; ids go from 0 to {self.layers}")
        self._bridge = _Bridge()
        self._streams: dict[int, torch.Tensor] = {}
        self._readers = [self._read_before(layer) for layer in {*self.aux_layers, self.layers}]
        self._needs_autocast = self.compute_dtype != self.dtype
        self._lean: LeanDecoder | None = None
        if lean:
            self._lean = self._leaned()

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
        lean: bool = True,
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
        verifier = cls(model.to(place), aux_layers, as_dtype(compute_dtype), lean)
        if packed:
            verifier.pack()
        return verifier

    def pack(self) -> None:
        """Lay all weights out for oneDNN in the type of the products; does nothing where that cannot be done."""
        if not can_pack(self.compute_dtype, self.device):
            return
        if self._lean is not None:
            self._lean.merge(self.compute_dtype)
        pack_linears(self.model, self.compute_dtype, cast_back=self._lean is None)
        # Packed weights bring their own type; autocast would change the attention's as well.
        self._needs_autocast = False

    @property
    def is_lean(self) -> bool:
        """Whether the layers run without transformers' code."""
        return self._lean is not None

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self._decoder.layers)

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
            dtype=self.compute_dtype,
            device=self.device,
            for_products=self.device.type == "cpu" and self.compute_dtype == torch.bfloat16,
        )

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        cache: SlotCache | None,
        rows: torch.Tensor,
        logits: Literal["all", "last"] | None = "last",
    ) -> VerifierOutput:
        """Read `input_ids` [B, q] at the ends of slots `rows` [B] int64, and advance those slots by q.

        `logits`: of all q positions, of the last one, or none (the head is then not computed). A row with fewer than
        q tokens is padded on the right with any token, and the caller crops its slot afterwards. Without a cache the
        rows are whole sequences of which nothing is kept.
        """
        width = input_ids.shape[1]
        place = whole(len(rows), width, self.device) if cache is None else cache.place(rows, width)
        current = Pass(cache, place, self.compute_dtype if cache is None else cache.dtype)
        ids = input_ids.to(self.device)
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self._needs_autocast):
            if self._lean is not None:
                streams = self._lean.forward(ids, current, self.aux_layers)
                scores = None if logits is None else self._head(streams[self.layers], logits)
            else:
                streams, scores = self._by_transformers(ids, current, logits)
        if cache is not None:
            cache.advance(rows, width)
        aux = torch.cat([streams[layer] for layer in self.aux_layers], dim=-1) if self.aux_layers else None
        return VerifierOutput(None if scores is None else scores.float(), aux, streams[self.layers])

    @torch.no_grad()
    def argmax(self, last: torch.Tensor) -> torch.Tensor:
        """The verifier's greedy next token after each stream of `last` [n, h] (before the final norm): int64 [n].

        Scaling and soft-capping of logits, where a model has them, keep the order and are left out.
        """
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self._needs_autocast):
            # The same as argmax, which torch computes five times slower than max in bfloat16.
            return self._head(last).max(dim=-1).indices

    def _head(self, last: torch.Tensor, logits: Literal["all", "last"] = "all") -> torch.Tensor:
        scores: torch.Tensor = self.model.get_output_embeddings()(
            self._norm(last[:, -1:] if logits == "last" else last)
        )
        return scores

    def _by_transformers(
        self, ids: torch.Tensor, current: Pass, logits: Literal["all", "last"] | None
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        """A pass by the model's own code: the streams our hooks saw, and the logits."""
        self._streams.clear()
        self._bridge.current = current
        arguments = {
            "input_ids": ids,
            "position_ids": current.place.positions,
            "past_key_values": self._bridge,
            "use_cache": True,
            "current_pass": current,
        }
        if logits is None:
            self._decoder(**arguments)
            return self._streams, None
        return self._streams, self.model(**arguments, logits_to_keep=0 if logits == "all" else 1).logits

    def _read_before(self, layer: int) -> RemovableHandle:
        """Keep the stream that enters a layer, or the final norm."""

        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._streams[layer] = args[0] if args else kwargs["hidden_states"]

        module = self._norm if layer == self.layers else self._decoder.layers[layer]
        handle: RemovableHandle = module.register_forward_pre_hook(read, with_kwargs=True)
        return handle

    def _leaned(self) -> LeanDecoder | None:
        """The lean decoder, when on a probe of ragged rows it gives what the model's own code gives."""
        if not LeanDecoder.fits(self._decoder):
            return None
        own = self._probe()
        self._lean = lean = LeanDecoder(self._decoder)
        tolerance = 1e-3 if self.compute_dtype == torch.float32 else 0.05
        agree = all(
            float((a - b).norm()) <= tolerance * float(b.norm()) for a, b in zip(self._probe(), own, strict=True)
        )
        if agree:
            for reader in self._readers:
                reader.remove()
        return lean if agree else None

    def _probe(self) -> list[torch.Tensor]:
        """Last streams and logits of two rows of different lengths, read in two passes."""
        cache, rows = self.new_cache(2, 16), torch.tensor([1, 0])
        ids = torch.arange(22).view(2, 11) * 7919 % self.vocab_size
        found = [self.forward(ids[:, :7], cache, rows, "all")]
        cache.crop(rows, [7, 5])
        found += [self.forward(ids[:, 7:10], cache, rows, "all"), self.forward(ids[:, 10:], cache, rows, "all")]
        return [each.float() for out in found for each in (out.last, out.logits) if each is not None]


class _Bridge(Cache):  # type: ignore[misc]
    """What the model's code takes for its cache: hands keys and values to the slots of the current pass."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.current: Pass

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.current.put(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.current.place.starts)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    current_pass: Pass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention that transformers' layers call: query [B, heads, q, d] to [B, q, heads, d]."""
    if softcap is not None:
        raise MachineError("the transformers engine cannot run models that cap attention scores")
    out = attend(query, key, value, current_pass, scaling, sliding_window)
    return out.to(query.dtype).transpose(1, 2), None


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


AttentionInterface.register(ATTENTION, _attention)
