"""Building blocks of draft networks."""
