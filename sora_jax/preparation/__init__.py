"""Floor 5: clips to shards."""
