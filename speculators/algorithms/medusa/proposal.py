"""Drafting with Medusa's heads (`heads/proposal.py`): none waits for another's token."""

from __future__ import annotations

from speculators.algorithms.heads.proposal import HeadsProposal

Proposal = HeadsProposal
