"""Exit codes of `train.py` other than 0 (done) and 1 (a bug, with its traceback)."""

MISTAKE = 2
"""A user's mistake, or a failure that was reported in one line."""

STOPPED = 3
"""The run was stopped. It has saved a checkpoint and can be resumed."""

INTERRUPTED = 130
"""The run was stopped before it had saved anything."""
