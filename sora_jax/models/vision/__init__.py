"""Frozen towers that see pixels: what a model is told of given images."""
