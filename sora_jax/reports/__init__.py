"""Pages of a run and of its data."""
