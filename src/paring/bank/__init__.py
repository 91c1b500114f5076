"""One base in memory, many deltas beside it, and an exact swap from one to another.

Nothing is loaded from here: ``bank`` needs PyTorch's compiler, which takes a second, and what reads folders does not.
"""
