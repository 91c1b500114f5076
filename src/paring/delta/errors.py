"""What is wrong with a delta, a checkpoint, or a pair of them."""


class DeltaError(ValueError):
    """A file or tensor that cannot be used; the message names it, what was found, what was expected and the remedy."""
