"""Drafting with Hydra's heads (`heads/proposal.py`): each reads the tokens that those before it drafted."""

from __future__ import annotations

from speculators.algorithms.heads.proposal import HeadsProposal

Proposal = HeadsProposal
