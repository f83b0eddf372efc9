"""Finding, converting and describing verifiers."""
