"""Loading, composing and validating recipes (`load`), and what steps may read of them (`view`, `semantic`)."""
