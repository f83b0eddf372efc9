"""Lets torchvision be imported beside a torch of another build, for its Python part, which is all that images need.

The published wheel's compiled part is CUDA's; beside a CPU build of torch it is not loaded, and the import then fails
as it describes two operators that were never defined. They are defined here, before it is imported, without anything
that computes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class BeforeTorchvision(MetaPathFinder):
    """Finds nothing; it is asked first, once, and defines the operators then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            from torch.library import Library

            self.library = Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for schema in SCHEMAS:
                self.library.define(schema)  # type: ignore[no-untyped-call]
        return None


FINDER = BeforeTorchvision()
"""Held on to, as the operators live as long as their library."""
sys.meta_path.insert(0, FINDER)
