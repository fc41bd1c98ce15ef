"""Further drawn worlds, each about one thing: what is hidden, near or far, what lasts, a game, how things move."""
