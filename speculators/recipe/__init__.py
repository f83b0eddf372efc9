"""Loading, composing and validating recipes."""
