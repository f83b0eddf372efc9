"""A Llama of seeded random weights with a byte-level tokenizer: a verifier for tests, made without a download.

It babbles letters and now and then ends its turn, but every part of the pipeline treats it as it treats a real one:
ChatML template, stop token, special tokens, safetensors. In its vocabulary ids 0..255 are the bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTES = 256
FREQUENT = (*b"abcdefghijklmnopqrstuvwxyz ", BYTES + 2)
"""Ids the model prefers: letters, the space and the end of turn, so that its answers are text and end by themselves."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MIN_VOCAB_SIZE = BYTES + 4
CONTEXT = 2048
NORM_EPS = 1e-5
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class RandomShape(Protocol):
    """The sizes and the seed of `verifier.random` in a recipe."""

    @property
    def layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def attention_heads(self) -> int: ...
    @property
    def key_value_heads(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def seed(self) -> int: ...


def check_random_shape(shape: RandomShape) -> None:
    """Raise UsageError when no such Llama exists."""
    if shape.vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"`verifier.random.vocab_size` is {shape.vocab_size}; a byte-level vocabulary needs at least "
            f"{MIN_VOCAB_SIZE}"
        )
    if shape.hidden_size % (2 * shape.attention_heads):
        raise UsageError(
            f"`verifier.random.hidden_size` is {shape.hidden_size}; it must be an even multiple of "
            f"`attention_heads` ({shape.attention_heads})"
        )
    if shape.attention_heads % shape.key_value_heads:
        raise UsageError(
            f"`verifier.random.attention_heads` is {shape.attention_heads}; it must be a multiple of "
            f"`key_value_heads` ({shape.key_value_heads})"
        )


def random_facts(shape: RandomShape) -> VerifierFacts:
    """The facts of the model that `write_random_model` would write, in float32, without making it."""
    head_dim = shape.hidden_size // shape.attention_heads
    attention = 2 * shape.hidden_size * head_dim * (shape.attention_heads + shape.key_value_heads)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size
    parameters = 2 * shape.vocab_size * shape.hidden_size + shape.layers * layer + shape.hidden_size
    return VerifierFacts(
        model_type="llama",
        architectures=("LlamaForCausalLM",),
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        attention_heads=shape.attention_heads,
        key_value_heads=shape.key_value_heads,
        head_dim=head_dim,
        vocab_size=shape.vocab_size,
        rms_norm_eps=NORM_EPS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=_special_id("<|im_start|>"),
        eos_token_ids=(_special_id("<|im_end|>"),),
        rope=dict(ROPE),
        weight_bytes=4 * parameters,
        active_weight_bytes=4 * parameters,
    )


def write_random_model(shape: RandomShape, directory: Path, *, dtype: str = "float32") -> None:
    """Write a Hugging Face checkpoint of seeded random weights; the same shape and seed give the same bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_random_shape(shape)
    im_start, im_end, padding = (_special_id(token) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=NORM_EPS,
        rope_parameters=dict(ROPE),
        bos_token_id=im_start,
        eos_token_id=im_end,
        pad_token_id=padding,
        tie_word_embeddings=False,
        # Wide enough that the logits differ clearly: greedy text must not hang on rounding.
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        model = LlamaForCausalLM(config)
        # Spread of each token's logit, whatever the width: wide for the frequent ones, widest for the end of turn.
        spread = torch.full((shape.vocab_size, 1), 0.4)
        spread[list(FREQUENT)] = 6.0
        spread[im_end] = 8.0
        model.lm_head.weight.data.normal_().mul_(spread / shape.hidden_size**0.5)
    model.to(getattr(torch, dtype))
    model.generation_config.eos_token_id = [im_end]
    model.generation_config.pad_token_id = padding
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    byte_tokenizer(shape.vocab_size).save_pretrained(directory)
    _drop_private_keys(directory / "config.json")


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose id b is byte b, then the special tokens, then unused names up to `vocab_size`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    for name in (*SPECIAL_TOKENS, *(f"<unused_{n}>" for n in range(vocab_size - BYTES - len(SPECIAL_TOKENS)))):
        vocabulary[name] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True)),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    )


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for every byte: itself where printable, else the next free one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters, shifted = [], 0
    for byte in range(BYTES):
        characters.append(chr(byte) if byte in printable else chr(0x100 + shifted))
        shifted += byte not in printable
    return characters


def _special_id(token: str) -> int:
    return BYTES + SPECIAL_TOKENS.index(token)


def _drop_private_keys(config_file: Path) -> None:
    """Keep the writer's path out of the config, so that the same shape gives the same bytes anywhere."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    config_file.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n", encoding="utf-8")
