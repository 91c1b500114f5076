"""Parts of ``benchmarks/fuse_speed.py``."""
