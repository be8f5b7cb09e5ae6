"""Exit codes of `train.py` beside 0 (done) and 1 (a bug, with its traceback)."""

MISTAKE = 2
"""A mistake of the user's or a failure that was reported in one line."""

STOPPED = 3
"""The run was told to stop, has saved a checkpoint and can go on."""

INTERRUPTED = 130
"""The run was told to stop before it had saved anything."""
