"""Drafting with an MLP speculator (`heads/proposal.py`): one step a token, from the state of the step before."""

from __future__ import annotations

from speculators.algorithms.heads.proposal import HeadsProposal

Proposal = HeadsProposal
