"""Floor 4: canvases to clips."""
