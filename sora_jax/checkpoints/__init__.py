"""Checkpoints: written whole, proven by digests, kept as long as they are wanted."""
