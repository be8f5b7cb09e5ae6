"""Configurations and the objects that they describe, checked against the signatures of the classes they name.

`schema` has `ConfigError`, `validate` and `build`.
"""
