"""MTP: the verifier's own multi-token-prediction head, fine-tuned to draft several tokens one after another."""
