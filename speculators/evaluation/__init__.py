"""Judging a draft: acceptance, suites, GuideLLM, gates."""
