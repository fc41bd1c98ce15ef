"""Floor 0: config, mesh, sharding, randomness, precision, means, errors, files."""
