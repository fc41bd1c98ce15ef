"""Prepared clips: shards of latents and text, and their index."""
