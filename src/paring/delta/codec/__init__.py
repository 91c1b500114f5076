"""How the parts of a delta file are coded: positions, values, exact differences, compression. Pure functions on tensors."""
