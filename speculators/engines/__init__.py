"""Running a verifier, with or without a draft."""
