"""How a verifier reads images: its own image processor, the tokens that stand for an image, and their rotary positions.

A chat template writes one token for an image; it becomes as many as the image has merged patches. Positions are those
of the model's own `get_rope_index`: an image's tokens have a row and a column beside their time, and the text after it
goes on behind its longer side, so that a text with images is shorter in positions than in tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.errors import UsageError
from speculators.verifiers.families import READS_IMAGES

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

_KEPT = 16
"""Processed images that are remembered, tens of megabytes each: several conversations may be about one."""


def image_names(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """File names of the images in messages as artifacts hold them, in order."""
    return tuple(
        part["image"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image"
    )


def check_reads_images(model_type: str) -> None:
    """Raise UsageError for a family of verifiers whose images are not supported."""
    if model_type not in READS_IMAGES:
        raise UsageError(
            "`data.sources` has images, which are read for verifiers of the types "
            f"{', '.join(READS_IMAGES)}; this one is {model_type}"
        )


class ImageReader:
    """The images' side of a verifier in a checkpoint directory."""

    def __init__(self, directory: Path, *, trust_remote_code: bool = False) -> None:
        """Raises UsageError for a verifier whose images are not supported, or one without its processor's settings."""
        from transformers import AutoConfig, AutoImageProcessor

        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        self._config = AutoConfig.from_pretrained(str(directory), **options)
        check_reads_images(self._config.model_type)
        try:
            # Always the same code, whatever else is installed: others resize to slightly different pixels.
            self._processor = AutoImageProcessor.from_pretrained(str(directory), backend="pil", **options)
        except (OSError, ValueError) as error:
            raise UsageError(f"{directory} has no settings for its image processor: {error}") from error
        self.image_id = int(self._config.image_token_id)
        self.placeholder_ids = (self.image_id, int(self._config.video_token_id))
        """What an answer must not contain: the model would look for an image there."""
        self._processed = lru_cache(_KEPT)(self._process)
        self._grids: dict[Path, torch.Tensor] = {}

    def inputs(self, images: Sequence[Path]) -> dict[str, torch.Tensor]:
        """What the model takes beside the ids: `pixel_values` float32 [patches, d], `image_grid_thw` int64 [n, 3]."""
        import torch

        each = [self._processed(image) for image in images]
        return {name: torch.cat([one[name] for one in each]) for name in ("pixel_values", "image_grid_thw")}

    def grids(self, images: Sequence[Path]) -> torch.Tensor:
        """The images' patches in time, rows and columns, int64 [n, 3]."""
        import torch

        return torch.cat([self._grid(image) for image in images])

    def expand(self, ids: Sequence[int], mask: Sequence[int], images: Sequence[Path]) -> tuple[list[int], list[int]]:
        """Token ids as a template renders them, and their loss mask, with all tokens of each image, which are masked.

        Raises UsageError when the text does not have exactly one place for each image.
        """
        found = [place for place, number in enumerate(ids) if number in self.placeholder_ids]
        if len(found) != len(images) or any(ids[place] != self.image_id for place in found):
            raise UsageError(f"the chat template wrote {len(found)} places for {len(images)} images")
        expanded: list[int] = []
        masked: list[int] = []
        start = 0
        for place, image in zip(found, images, strict=True):
            count = self._tokens(image)
            expanded += [*ids[start:place], *[self.image_id] * count]
            masked += [*mask[start:place], *[0] * count]
            start = place + 1
        return [*expanded, *ids[start:]], [*masked, *mask[start:]]

    def collapse(self, ids: Sequence[int], images: Sequence[Path]) -> list[int]:
        """What `expand` was given: expanded token ids with one token in the place of each image."""
        collapsed: list[int] = []
        start = 0
        for image in images:
            place = ids.index(self.image_id, start)
            collapsed += [*ids[start:place], self.image_id]
            start = place + self._tokens(image)
        return [*collapsed, *ids[start:]]

    def cut(self, ids: Sequence[int], images: Sequence[Path], limit: int) -> tuple[int, int]:
        """Where expanded `ids` must end so that they are at most `limit` long and have only whole images.

        Gives that length, and how many of the images are left.
        """
        start = 0
        for number, image in enumerate(images):
            start = ids.index(self.image_id, start)
            count = self._tokens(image)
            if start + count > limit:
                return min(limit, start), number
            start += count
        return min(limit, len(ids)), len(images)

    def token_types(self, ids: torch.Tensor) -> torch.Tensor:
        """The model's `mm_token_type_ids`: 1 where an image stands, else 0; int64 like `ids`."""
        return (ids == self.image_id).long()

    def positions(self, ids: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Rotary positions int64 [3, B, n] (time, row, column) of expanded `ids` [B, n], by the model's own rule.

        `grids` int64 [images, 3] are those of all rows, in order.
        """
        found: torch.Tensor = self._rule.get_rope_index(
            ids, mm_token_type_ids=self.token_types(ids), image_grid_thw=grids
        )[0]
        return found

    @cached_property
    def _rule(self) -> Any:
        """The model without weights: its class has the rule."""
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(self._config).base_model

    def _tokens(self, image: Path) -> int:
        return int(self._grid(image).prod()) // int(self._processor.merge_size) ** 2

    def _grid(self, image: Path) -> torch.Tensor:
        if image not in self._grids:
            self._grids[image] = self._processed(image)["image_grid_thw"]
        return self._grids[image]

    def _process(self, image: Path) -> dict[str, torch.Tensor]:
        return dict(self._processor(images=[_seen(image)], return_tensors="pt"))


def _seen(file: Path) -> Picture:
    """An image in RGB as vLLM 0.32 shows it to a model: upright by its EXIF orientation, and on white."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        image: Picture = opened
        with contextlib.suppress(Exception):  # as in vLLM: whatever is wrong with EXIF, the picture stays as it lies
            image = ImageOps.exif_transpose(opened)
        is_transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if image.mode == "RGB" or not is_transparent:  # vLLM leaves RGB alone even where a color counts as transparent
            plain: Picture = image.convert("RGB")
            return plain
        image = image.convert("RGBA")
        white: Picture = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
