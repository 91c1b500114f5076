"""Many deltas into one: merge methods as pure functions on tensors (``registry.METHODS``)."""
