"""Quality of tuning: tasks, methods, runs, and what they show. See ``benchmarks/tune_quality.py``."""
