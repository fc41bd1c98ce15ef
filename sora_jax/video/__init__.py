"""Floor 1: pixels, latents, patches, as pure functions."""
