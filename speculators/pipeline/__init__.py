"""Steps, keys, store, plan and runs."""
