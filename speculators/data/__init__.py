"""Conversations, tokens, packing, stored hidden states."""
