"""The Lightning side of a run: module, datamodule, checkpoint files, CSV logger, processes."""
