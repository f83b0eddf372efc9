"""One file a step: what it reads, makes and costs."""
