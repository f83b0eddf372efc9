"""What tests with images share: a tokenizer and an image processor for tiny verifiers that see, pictures, and talk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from speculators.decoding.request import Request
from speculators.verifiers.images import ImageReader
from speculators.verifiers.random_model import byte_tokenizer
from speculators.verifiers.tokenizer import ChatTokenizer

IMAGE_ID, VIDEO_ID = 290, 291  # of `tiny_families`
IMAGE, VIDEO, START, END = "<unused_31>", "<unused_32>", "<unused_33>", "<unused_34>"
NAMED = {"image_token": IMAGE, "video_token": VIDEO, "vision_start_token": START, "vision_end_token": END}
"""As a processor that vLLM makes finds them in a tokenizer's settings."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}{{{{ '{START}{IMAGE}{END}' }}}}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{% endfor %}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> Any:
    found = byte_tokenizer(300)
    found.add_special_tokens({"additional_special_tokens": [IMAGE, VIDEO, START, END]})
    found.chat_template = TEMPLATE
    return found


def image_processor() -> Any:
    return Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, size={"shortest_edge": 1024, "longest_edge": 16384})


def with_sight(checkpoint: Path, directory: Path) -> Path:
    """A copy of a checkpoint with what reading images needs beside the weights."""
    shutil.copytree(checkpoint, directory)
    tokenizer().save_pretrained(directory)
    settings = directory / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "extra_special_tokens": NAMED}))
    image_processor().save_pretrained(directory)
    return directory


def draw(folder: Path) -> list[Path]:
    """A wide one, a high one and a large one, which the processor makes smaller."""
    files = []
    for number, (width, height, color) in enumerate([(96, 64, "red"), (40, 100, "blue"), (300, 200, "green")]):
        image = Image.new("RGB", (width, height), "white")
        canvas = ImageDraw.Draw(image)
        canvas.ellipse((4, 4, width - 8, height - 12), fill=color)
        canvas.line((0, height, width, 0), fill="black", width=3)
        files.append(folder / f"{number}.png")
        image.save(files[-1])
    return files


def shown(images: Sequence[Path]) -> list[dict[str, Any]]:
    """A conversation about images, two of them in the first turn where there are three."""
    first = [{"type": "text", "text": "Look: "}, *({"type": "image", "image": one.name} for one in images[:2])]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [*first, {"type": "text", "text": " What is it?"}]},
        {"role": "assistant", "content": "A ball."},
    ]
    for image in images[2:]:
        content = [{"type": "image", "image": image.name}, {"type": "text", "text": "And now?"}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "The same, larger."}]
    return messages


def expanded(seeing: Path, reader: ImageReader, images: Sequence[Path], **options: Any) -> tuple[list[int], list[int]]:
    """The whole conversation's ids and loss mask."""
    ids, mask = ChatTokenizer.load(seeing).render_with_mask(shown(images), **options)
    return reader.expand(ids, mask, images)


def asked(seeing: Path, reader: ImageReader, images: Sequence[Path]) -> Request:
    """Its first turn, to be answered."""
    ids = ChatTokenizer.load(seeing).render(shown(images)[:1], add_generation_prompt=True)
    ids, _ = reader.expand(ids, [0] * len(ids), images[:2])
    return Request(ids, 10, images=images[:2])
