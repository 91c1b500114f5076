"""Make a delta small: magnitude, DARE, DELLA and NPS pruning of task vectors (Du et al. 2025, arXiv 2505.18713)."""
