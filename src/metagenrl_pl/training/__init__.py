"""The parts of a run that Lightning calls: module, datamodule, checkpoint files, loggers, processes."""
