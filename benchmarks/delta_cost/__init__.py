"""Parts of ``benchmarks/delta.py``."""
