"""Floor 6: a run from its config to its report."""
