"""Lossless draft-and-verify decoding."""
