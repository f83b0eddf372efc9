"""The verifier, run by transformers: any causal language model of theirs, over our cache of ragged slots.

The model's own code computes the layers; we bring the cache, the attention (registered with transformers by name, so
that the model builds no masks of its own) and hooks that read the residual stream. Decoders of the common family run
without that code (`lean.py`). A probe shows first that the numbers are the same; a model for which they are not (other
kinds of attention than ours, linear layers) keeps its own attention and reads whole texts every time (`rereading.py`).
A model opened for images computes its layers by its own code: its visual tower, and what it adds to the layers of text.

Layer ids: L is the residual stream *entering* decoder layer L, transformers' `hidden_states[L]`; L = number of layers
is the stream after the last layer and *before* the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, Cache

from speculators.engines.attention import Bent, Pass, attend
from speculators.engines.lean import LeanDecoder
from speculators.engines.loading import decoder_of, load_model, own_attention, takes_our_attention
from speculators.engines.rereading import TextCache
from speculators.errors import MachineError
from speculators.layers.packed_head import PackedHead
from speculators.layers.packed_linear import can_pack, pack_linears
from speculators.layers.products import product_dtype
from speculators.layers.slot_cache import SlotCache, whole
from speculators.layers.trees import Tree
from speculators.verifiers.images import ImageReader

ATTENTION = "speculators_slots"
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
PROBED_SHARE = 0.75
"""Of a probe's positions that must agree: where rounding decides between two experts, single ones may not."""


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
        self,
        model: Any,
        aux_layers: Sequence[int] = (),
        compute_dtype: torch.dtype | None = None,
        lean: bool = True,
        images: ImageReader | None = None,
    ) -> None:
        """Wrap a transformers model loaded with `attn_implementation=ATTENTION`; use `load` for a directory.

        `lean`: run the layers by `LeanDecoder` when that is right for this model. The model is then taken apart. The
        model gets its own attention back when ours is not right for it. With `images` it reads these too, not lean.
        """
        self.model = model.eval()
        self._images = images
        self.config: Any = self.model.config.get_text_config()
        self.aux_layers = tuple(aux_layers)
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        self.compute_dtype = compute_dtype or self.dtype
        self._decoder: Any = decoder_of(self.model)
        self._norm = _final_norm(self._decoder)
        wrong = [layer for layer in self.aux_layers if not 0 <= layer <= self.layers]
        if wrong:
            raise ValueError(f"the verifier has no layer {wrong[0]}; ids go from 0 to {self.layers}")
        self._bridge = _Bridge()
        self._streams: dict[int, torch.Tensor] = {}
        self._readers = [self._read_before(layer) for layer in {*self.aux_layers, self.layers}]
        self._needs_autocast = self.compute_dtype != self.dtype
        self._lean: LeanDecoder | None = None
        self._rereads = not self._can_replace_attention()
        if lean and images is None and not self._rereads:
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
        split_head: bool = False,
        reads_images: bool = False,
    ) -> VerifierModel:
        """Load a Hugging Face checkpoint directory.

        `dtype` is the type of weights and residual stream ("auto": the checkpoint's), `compute_dtype` that of the
        matrix products when it differs (bfloat16 products around a float32 stream). A CPU without units for a type
        keeps weights of that precision but computes everything in float32. `device` may be "auto": the first
        of cuda, mps, cpu that is there. `threads` sets torch's number of threads for the process. `packed` lays the
        weights out for oneDNN, on a CPU that has it; elsewhere it does nothing. `split_head` does so for the argmax of
        many streams, at the price of logits. `reads_images` lets it read images, which costs a fifth of its speed on
        text.

        Raises MachineError for a model that this transformers does not have, UsageError for one whose images are not
        supported.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        place = choose_device(device)
        model = load_model(
            directory, as_dtype(dtype), ATTENTION, trust_remote_code=trust_remote_code, reads_images=reads_images
        )
        model.requires_grad_(requires_grad=False)
        model.to(place, product_dtype(model.dtype, place))
        wanted = as_dtype(compute_dtype)
        images = ImageReader(Path(directory), trust_remote_code=trust_remote_code) if reads_images else None
        verifier = cls(model, aux_layers, wanted and product_dtype(wanted, place), lean, images)
        if packed:
            verifier.pack(split_head=split_head)
        return verifier

    def pack(self, *, split_head: bool = False) -> None:
        """Lay all weights out for oneDNN in the type of the products; does nothing where that cannot be done.

        Models that keep their own attention keep their weights too: some look at them outside of their layers.
        """
        if self._rereads or not can_pack(self.compute_dtype, self.device):
            return
        if self._lean is not None:
            self._lean.merge(self.compute_dtype)
        cast_back = self._lean is None
        head = self.model.get_output_embeddings()
        if split_head and type(head) is nn.Linear:
            packed = PackedHead(head.weight, head.bias, self.compute_dtype, cast_back=cast_back)
            self.model.set_output_embeddings(packed)
        pack_linears(self.model, self.compute_dtype, cast_back=cast_back)
        # Packed weights bring their own type; autocast would change the attention's as well.
        self._needs_autocast = False

    @property
    def is_lean(self) -> bool:
        """Whether the layers run without transformers' code."""
        return self._lean is not None

    @property
    def rereads(self) -> bool:
        """Whether the model keeps its own attention, and reads a slot's whole text again in every pass."""
        return self._rereads

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

    def new_cache(self, slots: int, capacity: int) -> SlotCache | TextCache:
        """An empty cache for `slots` sequences of at most `capacity` tokens."""
        if self._rereads:
            return TextCache(slots, capacity)
        # As the first pass showed them; a layer that looks at another's keys and values has none.
        shapes = [self._bridge.shapes.get(layer, (1, 1, 1)) for layer in range(self.layers)]
        return SlotCache(
            layers=self.layers,
            slots=slots,
            kv_heads=[heads for heads, _, _ in shapes],
            head_dim=[size for _, size, _ in shapes],
            value_dim=[size for _, _, size in shapes],
            capacity=capacity,
            dtype=self.compute_dtype,
            device=self.device,
            for_products=self.device.type == "cpu" and self.compute_dtype == torch.bfloat16,
        )

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        cache: SlotCache | TextCache | None,
        rows: torch.Tensor,
        logits: Literal["all", "last"] | None = "last",
        tree: Tree | None = None,
        images: Sequence[Sequence[Path]] | None = None,
    ) -> VerifierOutput:
        """Read `input_ids` [B, q] at the ends of slots `rows` [B] int64, and advance those slots by q.

        `logits`: of all q positions, of the last one, or none (the head is then not computed). A row with fewer than
        q tokens is padded on the right with any token, and the caller crops its slot afterwards. Without a cache the
        rows are whole sequences of which nothing is kept. With a `tree` the input is each row's newest token and the
        tree's nodes; the caller keeps those of the path that stands (`SlotCache.keep`). `images` are the files of each
        row's images, whose tokens are all in this pass, at the beginning of its slot.
        """
        width = input_ids.shape[1]
        shown = images if images is not None and any(images) else None
        if isinstance(cache, TextCache) or self._rereads:
            return self._reread(input_ids, cache, rows, logits, shown)
        place = whole(len(rows), width, self.device) if cache is None else cache.place(rows, width)
        current = Pass(cache, place, self.compute_dtype if cache is None else cache.dtype, tree)
        ids = input_ids.to(self.device)
        seen = None if shown is None else self._see(ids, shown)
        if seen is not None and cache is not None:
            if not current.is_fresh:
                raise ValueError("images are read with the beginning of their text")
            cache.turn(rows, seen["position_ids"][0])
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self._needs_autocast):
            if self._lean is not None:
                streams = self._lean.forward(ids, current, self.aux_layers)
                scores = None if logits is None else self._head(streams[self.layers], logits)
            else:
                streams, scores = self._by_transformers(ids, current, logits, seen)
        if cache is not None:
            cache.advance(rows, width)
        return self._output(streams, scores)

    def positions(self, input_ids: torch.Tensor, images: Sequence[Sequence[Path]]) -> torch.Tensor:
        """The rotary positions int64 [B, q] that a draft takes for texts `input_ids` [B, q] with these images.

        They are the verifier's own in time; an image's rows and columns are left out, as they are in vLLM.
        """
        if self._images is None:
            raise ValueError("this verifier was not opened for images")
        grids = self._images.grids([image for each in images for image in each])
        return self._images.positions(input_ids.cpu(), grids)[0]

    def _output(self, streams: dict[int, torch.Tensor], scores: torch.Tensor | None) -> VerifierOutput:
        aux = torch.cat([streams[layer] for layer in self.aux_layers], dim=-1) if self.aux_layers else None
        if scores is not None:
            scores = scores.float()
            if self._images is not None:
                scores[..., self._images.placeholder_ids] = -torch.inf  # an answer shows no images
        return VerifierOutput(scores, aux, streams[self.layers])

    def _see(self, ids: torch.Tensor, images: Sequence[Sequence[Path]]) -> dict[str, torch.Tensor]:
        """The model's arguments for texts [B, q] with images, from their beginning."""
        if self._images is None:
            raise ValueError("this verifier was not opened for images")
        inputs = self._images.inputs([image for each in images for image in each])
        return {
            "mm_token_type_ids": self._images.token_types(ids),
            "position_ids": self._images.positions(ids.cpu(), inputs["image_grid_thw"]).to(self.device),
            **{name: tensor.to(self.device) for name, tensor in inputs.items()},
        }

    @torch.no_grad()
    def argmax(self, last: torch.Tensor) -> torch.Tensor:
        """The verifier's greedy next token after each stream of `last` [n, h] (before the final norm): int64 [n].

        Scaling and soft-capping of logits, where a model has them, keep the order and are left out.
        """
        head = self.model.get_output_embeddings()
        if isinstance(head, PackedHead):
            return head.argmax(self._norm(last))
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self._needs_autocast):
            # The same as argmax, which torch computes five times slower than max in bfloat16.
            return self._head(last).max(dim=-1).indices

    def _head(self, last: torch.Tensor, logits: Literal["all", "last"] = "all") -> torch.Tensor:
        scores: torch.Tensor = self.model.get_output_embeddings()(
            self._norm(last[:, -1:] if logits == "last" else last)
        )
        return scores

    def _by_transformers(
        self,
        ids: torch.Tensor,
        current: Pass,
        logits: Literal["all", "last"] | None,
        seen: Mapping[str, torch.Tensor] | None,
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        """A pass by the model's own code: the streams our hooks saw, and the logits."""
        self._streams.clear()
        self._bridge.current = current
        arguments = {
            "input_ids": ids,
            "position_ids": current.rotary,
            "past_key_values": self._bridge,
            "use_cache": True,
            "current_pass": current,
            **(seen or {}),
        }
        if logits is None:
            (self._decoder if seen is None else self.model.base_model)(**arguments)
            return self._streams, None
        return self._streams, self.model(**arguments, logits_to_keep=0 if logits == "all" else 1).logits

    def _reread(
        self,
        input_ids: torch.Tensor,
        cache: Any,
        rows: torch.Tensor,
        logits: Literal["all", "last"] | None,
        images: Sequence[Sequence[Path]] | None,
    ) -> VerifierOutput:
        """A pass by the model's own code and attention over whole texts, of which the new positions are kept."""
        texts, places = input_ids, torch.arange(input_ids.shape[1]).expand_as(input_ids)
        if cache is not None:
            for row, own in zip(rows.tolist(), images or (), strict=False):
                cache.images[row] = own
            images = [cache.images[row] for row in rows.tolist()]
            texts, places = cache.append(rows, input_ids)
        texts = texts.to(self.device)
        seen = self._see(texts, images) if images is not None and any(images) else {}
        places = places.to(self.device)
        asked = places if logits == "all" else places[:, -1:]
        kept, which = torch.unique(asked, return_inverse=True)
        self._streams.clear()
        with torch.autocast(self.device.type, self.compute_dtype, enabled=self._needs_autocast):
            if logits is None:
                (self.model.base_model if seen else self._decoder)(input_ids=texts, use_cache=False, **seen)
                scores = None
            else:
                every = self.model(input_ids=texts, use_cache=False, logits_to_keep=kept, **seen).logits
                scores = _at(every, which)
        return self._output({layer: _at(stream, places) for layer, stream in self._streams.items()}, scores)

    def _read_before(self, layer: int) -> RemovableHandle:
        """Keep the stream that enters a layer, or the final norm."""

        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._streams[layer] = args[0] if args else kwargs["hidden_states"]

        module = self._norm if layer == self.layers else self._decoder.layers[layer]
        handle: RemovableHandle = module.register_forward_pre_hook(read, with_kwargs=True)
        return handle

    def _can_replace_attention(self) -> bool:
        """Whether ours gives what the model's own attention gives, on a probe of ragged rows; else it keeps its own."""
        self.model.set_attn_implementation(own_attention(self.model))
        if not takes_our_attention(self.model):
            return False
        self._rereads = True
        own = self._probe()
        self.model.set_attn_implementation(ATTENTION)
        if self._images is not None:  # what looks at images sees all of them at once
            self.model.base_model.visual.set_attn_implementation(own_attention(self.model))
        self._rereads = False
        try:
            self.forward(torch.zeros(1, 2, dtype=torch.int64), None, torch.tensor([0]))  # shows the cache's shapes
            if self._agree(self._probe(), own):
                return True
        except (AttributeError, NotReplaceable, TypeError, RuntimeError):
            pass  # what models say that look for their masks, or do not hand our pass on to the attention
        self.model.set_attn_implementation(own_attention(self.model))
        return False

    def _leaned(self) -> LeanDecoder | None:
        """The lean decoder, when on a probe of ragged rows it gives what the model's own code gives."""
        if not LeanDecoder.fits(self._decoder):
            return None
        own = self._probe()
        self._lean = lean = LeanDecoder(self._decoder)
        if not self._agree(self._probe(), own):
            return None
        for reader in self._readers:
            reader.remove()
        return lean

    def _agree(self, found: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> bool:
        """Whether streams and logits [B, q, .] of two probes are the same up to rounding."""
        tolerance = 1e-3 if self.compute_dtype == torch.float32 else 0.05
        same = [(a - b).norm(dim=-1) <= tolerance * b.norm(dim=-1) for a, b in zip(found, own, strict=True)]
        return all(float(positions.float().mean()) >= PROBED_SHARE for positions in same)

    def _probe(self) -> list[torch.Tensor]:
        """Last streams and logits of two rows of different lengths, read in three passes."""
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
        self.shapes: dict[int, tuple[int, int, int]] = {}
        """Key heads, size of a key and size of a value of the layers met so far."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes.setdefault(layer_idx, (key_states.shape[1], key_states.shape[-1], value_states.shape[-1]))
        return self.current.put(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.current.place.starts)


class NotReplaceable(MachineError):
    """The model's attention is of a kind that ours is not."""


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
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention that transformers' layers call: query [B, heads, q, d] to [B, q, heads, d]."""
    if attention_mask is not None or position_bias is not None:
        raise NotReplaceable(f"the attention of {type(module).__name__} sees more than the text before it")
    bent = Bent(softcap, s_aux) if softcap is not None or s_aux is not None else None
    out = attend(query, key, value, current_pass, scaling, sliding_window, bent)
    return out.to(query.dtype).transpose(1, 2), None


def _at(found: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The rows of `found` [B, L, n] at `places` [B, q]: [B, q, n]."""
    return found.gather(1, places[..., None].expand(-1, -1, found.shape[-1]))


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
