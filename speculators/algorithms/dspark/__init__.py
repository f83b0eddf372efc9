"""DSpark: DFlash's layers, a Markov head that sees the token before, and one that foretells acceptance."""
