"""Floor 4: the train step and the loop around it."""
