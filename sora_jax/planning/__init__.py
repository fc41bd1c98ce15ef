"""Floor 7: what a machine would have to give for the programs of a run, compiled without it."""
