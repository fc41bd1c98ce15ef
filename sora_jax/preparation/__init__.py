"""Floor 4: clips to shards."""
