"""From the command line to a run: strict Hydra, checks, assembly, the run folder, resume, and the end of a run."""
