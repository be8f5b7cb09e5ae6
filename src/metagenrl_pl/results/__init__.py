"""Results on disk and what is computed from them: rows of returns, run folders, scores over environments, statistics, provenance."""
