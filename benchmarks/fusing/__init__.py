"""Parts of the benchmark of merge quality: problem (models, rows) -> merges (what is tried) -> cells -> plan -> report."""
