"""Every tensor of a draft of ours, with the source's name for it: nothing may be left over, and nothing may lack."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from speculators.checkpoints.foreign import Foreign
from speculators.errors import UsageError

_COMPUTED = re.compile(r"(.*\.)?rotary_emb\.\w+")


def computed(foreign: Foreign) -> dict[str, str]:
    """Tensors of the source that nothing reads, because the config says them, with the reason."""
    return {name: "it is computed from the config" for name in foreign.headers if _COMPUTED.fullmatch(name)}


def refuse_unknown(foreign: Foreign, known: Collection[str], what: str) -> None:
    """Raise UsageError for tensors of the source that are not `known`; `what` is the draft, as a noun."""
    unknown = [name for name in foreign.headers if name not in known]
    if unknown:
        raise UsageError(
            f"{foreign.name} holds {listed(unknown)}, which {what} of this project does not have; "
            "nothing is left out without a reason"
        )


def assigned(
    foreign: Foreign, expected: Collection[str], ours: Mapping[str, str], without: Collection[str], what: str
) -> dict[str, str]:
    """Our names -> the source's, for every tensor that is `expected`.

    `ours` are the names that the source's tensors would have here, with the source's; `without` are tensors of the
    source that are known to be left out. Raises UsageError when one is left over, lacks, or is there under two names.
    """
    tensors = {name: ours[name] for name in expected if name in ours}
    refuse_unknown(foreign, {*tensors.values(), *without}, what)
    lacking = [name for name in expected if name not in tensors]
    if lacking:
        raise UsageError(f"{foreign.name} lacks {listed(lacking)}")
    return tensors


def matrix(shapes: Mapping[str, Sequence[int]], name: str | None, what: str, source: str) -> tuple[int, int]:
    """Rows and columns of the source's tensor `name`, which is `what`; UsageError where it is no matrix, or missing.

    `name` is None where the source has no such tensor.
    """
    if name is None:
        raise UsageError(f"{source} lacks {what}")
    shape = tuple(shapes[name])
    if len(shape) != 2:
        raise UsageError(f"{source}: {name} has the shape {list(shape)}; {what} is a matrix")
    return shape[0], shape[1]


def listed(names: Sequence[str]) -> str:
    """Some names for a message."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
