"""Floor 2: clips to packed rows; numpy and grain, no device arrays."""
