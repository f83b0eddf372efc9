"""Which path of a proposed tree the verifier keeps: exactly its own distribution at every temperature.

The verifier chooses its own token after the newest one and after every node (its argmax, or a draw from p), and the
path that these choices follow stands. A tree's nodes are no random draws, so this is what trying siblings in order
comes to, a rejected one's probability taken out of p and the rest scaled up: sibling x is accepted with p(x) in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speculators.decoding.chain import Verdict


@dataclass(frozen=True)
class Path:
    """The nodes of a tree that stand, from the top; how many levels were judged; and the tokens to commit."""

    nodes: list[int]
    judged: int
    verdict: Verdict


def follow(own: Sequence[int], tokens: Sequence[int], parents: Sequence[int], limit: int) -> Path:
    """Follow the verifier's choices through a tree, `limit` levels at most.

    `own[0]` is its choice after the newest token, `own[i + 1]` that after node i; `parents` are -1 at the top.
    """
    children: dict[int, dict[int, int]] = {}
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        children.setdefault(parent, {}).setdefault(token, node)
    path: list[int] = []
    here, judged = -1, 0
    while len(path) < limit and here in children:
        judged += 1
        below = children[here].get(own[here + 1])
        if below is None:
            break
        path.append(below)
        here = below
    return Path(path, judged, Verdict(len(path), [*(tokens[node] for node in path), own[here + 1]]))
