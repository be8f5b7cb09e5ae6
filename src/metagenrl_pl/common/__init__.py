"""Helpers that every package may use: crash-safe files, error messages, random streams, placement of agents on processes.

Any module may import from here. This package imports nothing else of the project.
"""
