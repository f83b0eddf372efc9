"""The speculators format on disk."""
