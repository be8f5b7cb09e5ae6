"""Check configurations against the signatures of the classes that they name, and build the objects that they describe.

Use `ConfigError`, `validate` and `build` from `schema`. `former` reads files of version 0.1.0.
"""
