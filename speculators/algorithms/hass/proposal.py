"""Drafting with HASS: as with EAGLE-1."""

from __future__ import annotations

from speculators.algorithms.eagle.proposal import EagleProposal

Proposal = EagleProposal
