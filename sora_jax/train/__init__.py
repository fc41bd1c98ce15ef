"""Floor 5: the training system."""
