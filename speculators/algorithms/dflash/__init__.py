"""DFlash: a whole block of tokens drafted at once, from masks that see the verifier's states as keys and values."""
