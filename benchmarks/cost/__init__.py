"""What tuning costs, in time and bytes: the pieces of benchmarks/tune_cost.py."""
