"""The parts of a run that Lightning calls: module, datamodule, checkpoint files, CSV logger, processes."""
