"""EAGLE-1 (arXiv:2401.15077), and EAGLE-2's drafts, which are trained alike: the verifier's features, foretold."""
