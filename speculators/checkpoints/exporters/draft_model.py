"""An independent draft as the plain model it is: transformers loads the folder, vLLM serves it by `draft_model`.

Tensors get the names of transformers' class, which are ours below `model.`; tokenizer files are the verifier's, and are
not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speculators.algorithms.draft_model.config import CLASSES
from speculators.algorithms.draft_model.layout import plain_name
from speculators.checkpoints.exporters.base import Export

if TYPE_CHECKING:
    import torch

NAME = "draft_model"
TITLE = "a plain causal model (transformers, vLLM)"
KINDS = ("draft_model",)


def export(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Export:
    """`config.json` and tensors of the model, from those of a draft_model checkpoint in the speculators format."""
    layer = {key: value for key, value in config["transformer_layer_config"].items() if value not in (None, [])}
    rope = {key: value for key, value in layer["rope_parameters"].items() if key != "rope_theta"}
    exported = {
        "architectures": [CLASSES[layer["model_type"]]],
        **layer,
        # Versions of transformers before 5 read these.
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "torch_dtype": config["dtype"],
        "dtype": config["dtype"],
    }
    return Export(exported, {plain_name(name): name for name in tensors})
