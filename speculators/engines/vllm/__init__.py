"""The production engine: a real vLLM in an environment of its own, driven over HTTP; nothing of it is imported here."""
