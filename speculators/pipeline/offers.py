"""Which artifacts of a remote store may stand for work that is not here, by the rules that hold for those here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from speculators.pipeline.manifest import Manifest
from speculators.pipeline.reasons import Reason, Why
from speculators.pipeline.step import Step
from speculators.pipeline.store import made_from


def fitting(
    order: Collection[Step], here: Mapping[str, Manifest], offers: Mapping[str, Manifest], forced: Collection[str]
) -> tuple[dict[str, Manifest], dict[str, Why]]:
    """Those of the `offers` that go with what is `here`, and with each other; and why the others do not.

    One key may have several instances, and a step was made from particular ones. What is here is never put in doubt by
    what is elsewhere; among offers, the nearer to the end of the graph wins, as it spares the most work. What is forced
    or out of date will be made anew, so that nothing has to go with it.
    """
    taken = dict(here)
    instances = {name: manifest.instance for name, manifest in here.items()}
    made_anew = {name for name, manifest in here.items() if name in forced or made_from(manifest, instances)}
    refused: dict[str, Why] = {}
    for step in reversed(tuple(order)):
        offer = offers.get(step.name)
        if offer is None:
            continue
        instances = {name: manifest.instance for name, manifest in taken.items()}
        lasting = (name for name in taken if name not in made_anew)
        later = next((name for name in lasting if made_from(taken[name], {step.name: offer.instance})), None)
        if stale := made_from(offer, instances):
            refused[step.name] = Why(Reason.INPUT_REBUILT, f"the remote store's was made from another {stale}")
        elif later:
            refused[step.name] = Why(Reason.MISSING, f"the remote store's is not the one that {later} was made from")
        else:
            taken[step.name] = offer
    return {name: manifest for name, manifest in taken.items() if name not in here}, refused
