"""Floor 3: clips to packed rows; numpy and grain, no device arrays."""
