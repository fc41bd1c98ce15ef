"""Floor 5: what the models are worth, in numbers."""
