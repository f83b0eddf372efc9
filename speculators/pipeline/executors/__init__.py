"""Where a step's command runs."""
