"""Drills: what is broken on purpose, and what must hold then; `sora_jax.benchmarks.faults` runs them."""
