"""Distances between the draft's and the verifier's distributions."""
