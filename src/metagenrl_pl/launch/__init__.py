"""From the command line to a run: Hydra made strict, checks, the run folder, resume, and how a run ends."""
