"""Claims of speed and memory as commands that anyone can run: ratios against a baseline of the same run."""
