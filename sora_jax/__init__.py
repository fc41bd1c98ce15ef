"""A JAX/Flax, TPU-first trainer for Sora-like text-to-video models."""
