"""Typed mirrors of the schemas, without torch."""
