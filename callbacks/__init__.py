"""Callbacks observe training. They never change what is learned."""
