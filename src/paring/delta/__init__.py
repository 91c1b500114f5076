"""What a task adds to a model: differences against a base, as rectangles of its tensors."""
