"""Floor 5: pages of a run and of its data."""
