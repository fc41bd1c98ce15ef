"""Experiments: one file each; base.py is the vocabulary."""
