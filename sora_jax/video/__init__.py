"""Floor 2: pixels, latents, patches, as pure functions."""
