"""Floor 1: layers; they know no video."""
