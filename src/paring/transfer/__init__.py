"""How much of a task vector to put on: scores along theta_pre + lambda * (mask * tau), and the best place on that path.

grid (which lambdas) -> path (the model at each, in place) -> scores (H-score, best, Pareto front); joint searches lambda beside
the weights of a pruning. No file is read here.
"""
