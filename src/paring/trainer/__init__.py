"""Slices with Hugging Face's Trainer, and under the names that the paper's project page uses.

plateau (when rates and ranks decay) -> checkpoints (what a run leaves) -> callback (any Trainer) -> trainer (SliceTrainer);
paper (inject_peft, restore_layers) needs no transformers.
"""
