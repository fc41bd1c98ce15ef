"""Floor 2: the mathematics of diffusion, as pure functions."""
