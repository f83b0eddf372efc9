"""The command line: one file a command, its options and its printing, no logic."""
