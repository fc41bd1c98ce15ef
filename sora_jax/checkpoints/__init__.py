"""Floor 2: checkpoints: written whole, proven by digests, kept as long as they are wanted."""
