"""Floor 3: the transformer, the autoencoder, text encoders."""
