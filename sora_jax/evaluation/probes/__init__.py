"""Probes of simulation: does what a model goes on to make stay true to the world that its first frames show."""
