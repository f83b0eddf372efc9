"""`python -m speculators`, the same as the command `speculators`."""

from speculators.cli import main

main()
