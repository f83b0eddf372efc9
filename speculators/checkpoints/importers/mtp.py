"""A verifier's own multi-token-prediction head, taken out of its checkpoint; `speculators stitch` writes it back.

The reading is that of training, which starts from the same head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speculators.algorithms.mtp.config import MtpConfig, sizes, told_by_shapes
from speculators.algorithms.mtp.layout import tensors
from speculators.algorithms.mtp.native_names import find_head
from speculators.algorithms.mtp.styles import HEAD
from speculators.checkpoints.foreign import Foreign
from speculators.checkpoints.importers.base import Translation
from speculators.errors import UsageError
from speculators.verifiers.facts import VerifierFacts

NAME = "mtp"
TITLE = "a verifier's own multi-token-prediction head"

_NAMES = re.compile(r"mtp\..+|(.+\.)?mtp_layers\..+|.+\.eh_proj\.weight")
_ALIKE = ("model_type", "layers", "hidden_size", "vocab_size", "attention_heads", "key_value_heads", "head_dim")


def recognise(foreign: Foreign) -> Sequence[str]:
    """It has tensors that are named as families of verifiers name those of their heads."""
    named = next((name for name in foreign.headers if _NAMES.fullmatch(name)), None)
    if named is None:
        return ()
    return (f"it holds a multi-token-prediction head ({named})",)


def translate(foreign: Foreign, facts: VerifierFacts, aux_layers: Sequence[int] | None) -> Translation:
    """The head in our words; raises UsageError when there is none that a draft of this project can be.

    Or when it is another verifier's.
    """
    if aux_layers is not None:
        raise UsageError(f"{foreign.name} reads the verifier's last state alone; there are no layers to choose")
    own = VerifierFacts.from_config(foreign.config, where=f"{foreign.name}: config.json")
    unlike = [key for key in _ALIKE if getattr(own, key) != getattr(facts, key)]
    if unlike:
        raise UsageError(
            f"{foreign.name} is another model than the verifier: its {unlike[0]} is {getattr(own, unlike[0])}, "
            f"the verifier's is {getattr(facts, unlike[0])}; a head is of its own verifier alone"
        )
    native = find_head(foreign.headers, own.layers, own.model_type, foreign.name)
    if own.mtp_layers != 1:
        raise UsageError(f"{foreign.name} has the tensors of one head, and its config says {own.mtp_layers or 'none'}")
    promised = MtpConfig(**sizes(own), style=native.style, aux_layers=(own.layers,))
    shapes = {name: foreign.headers[source].shape for name, source in native.names.items()}
    draft = told_by_shapes(promised, native.style, shapes, foreign.name).to_config_json()
    others = len(foreign.headers) - len(native.names) - len(native.copies)
    return Translation(
        draft,
        tensors(draft),
        {HEAD + name: source for name, source in native.names.items()},
        borrowed={name: "embedding" if name.endswith("embed_tokens.weight") else "head" for name in native.copies},
        notices=(f"{others} other tensors are the verifier's own, and stay there",) if others else (),
    )


def head_files(config: Mapping[str, Any], where: Mapping[str, str], name: str) -> Iterable[str]:
    """The files of a verifier's checkpoint that hold its head; `where` says of each tensor which file that is.

    Raises UsageError when it has no head, `name` being the verifier's in the message.
    """
    facts = VerifierFacts.from_config(config, where=f"{name}: config.json")
    native = find_head(where, facts.layers, facts.model_type, name)
    return sorted({where[tensor] for tensor in (*native.names.values(), *native.copies)})
