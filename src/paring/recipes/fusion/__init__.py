"""What ``paring fuse`` does with calibration rows.

settings -> named (the configuration, its tasks, it with other weights) -> problem (models in memory, rows, scores) -> methods
(pruning, searches) -> report (what is said) -> written (heads, model card) -> run. Needs the extra ``train``.
"""
