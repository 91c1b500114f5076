"""Deltas from and for other programs' formats: PEFT's LoRA adapters."""
