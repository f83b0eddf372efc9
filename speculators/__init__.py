"""Speculators: one recipe in, a trained, verified, servable speculative-decoding draft out."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("speculators")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
