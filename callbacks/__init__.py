"""Callbacks watch training from outside; they never change what is learned."""
