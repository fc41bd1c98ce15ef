"""Further drawn worlds, each with one thing to be understood: what is hidden, near and far, kept, asked for, falling."""
