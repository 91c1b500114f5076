"""Checkpoints on disk, read and written a piece at a time: found, opened, known again by their hashes, written whole or not."""
