"""Floor 4: what is minimised: (model, batch, key) -> (loss, metrics)."""
