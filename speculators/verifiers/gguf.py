"""A GGUF file as a Hugging Face checkpoint: weights dequantised once, and the poor metadata of the format made good.

transformers reads the weights; what it cannot know from a GGUF is put right here: which tokens are special (the file's
own token types say it), the longest input, the end-of-sequence ids of generation, a name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from speculators.errors import UsageError

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types


def convert_gguf(file: Path, directory: Path, *, dtype: str, name: str) -> None:
    """Write the checkpoint of `file` to `directory`, which appears only when it is whole.

    `dtype` is the stored precision of the dequantised weights; `name` is what the model shall be called.
    Raises UsageError when the file is not a GGUF that transformers can read.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    metadata = read_metadata(file)
    _write_weights(file, partial, dtype)
    _write_tokenizer(file, partial, metadata)
    _mend_configs(partial, metadata, name)
    partial.replace(directory)


def read_metadata(file: Path) -> dict[str, Any]:
    """The key-value part of a GGUF file; raises UsageError when it is not one."""
    from gguf import GGUFReader

    if not file.is_file():
        raise UsageError(f"`verifier.model`: there is no file {file}")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UsageError(f"`verifier.model`: {file} is not a GGUF file")
    try:
        reader = GGUFReader(file)
        return {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise UsageError(f"`verifier.model`: {file} is not a whole GGUF file: {error}") from error


def special_tokens(metadata: dict[str, Any]) -> list[str]:
    """The control tokens by the file's own token types, in id order."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    return [token for token, kind in zip(tokens, types, strict=False) if kind == _CONTROL]


def _write_weights(file: Path, directory: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        # Without it the weights stay packed and cannot be saved.
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)


def _write_tokenizer(file: Path, directory: Path, metadata: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    extra = [token for token in special_tokens(metadata) if token not in named]
    if extra:
        tokenizer.add_special_tokens({"additional_special_tokens": extra})
    tokenizer.model_max_length = int(_of_architecture(metadata, "context_length", 2048))
    tokenizer.save_pretrained(directory)


def _mend_configs(directory: Path, metadata: dict[str, Any], name: str) -> None:
    config = _read(directory / "config.json")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    config["_name_or_path"] = name
    # Stored as a float32 in the file: 9.999999747378752e-06 is meant to be 1e-05.
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")
    _write(directory / "config.json", config)

    generation_file = directory / "generation_config.json"
    generation = _read(generation_file) if generation_file.is_file() else {}
    tokens = metadata["tokenizer.ggml.tokens"]
    ends = [metadata.get("tokenizer.ggml.eos_token_id"), metadata.get("tokenizer.ggml.eot_token_id")]
    ends += [tokens.index(token) for token in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>") if token in tokens]
    generation["eos_token_id"] = list(dict.fromkeys(int(end) for end in ends if end is not None))
    generation = {key: value for key, value in generation.items() if not key.startswith("_")}
    _write(generation_file, generation)


def _of_architecture(metadata: dict[str, Any], key: str, otherwise: int) -> Any:
    return metadata.get(f"{metadata.get('general.architecture')}.{key}", otherwise)


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
