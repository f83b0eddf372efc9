"""Independent draft: a small causal language model of its own, distilled from the verifier or taken as it is."""
