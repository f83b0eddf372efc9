"""The drafts: one folder an algorithm."""
