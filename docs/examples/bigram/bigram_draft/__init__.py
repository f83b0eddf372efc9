"""A draft that knows of every token which one follows it, and nothing else: the smallest algorithm there is."""
