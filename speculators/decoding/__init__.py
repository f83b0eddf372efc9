"""Lossless draft-and-verify decoding: `loop.Decoder`, `request.Request`, `request.Commit`."""
