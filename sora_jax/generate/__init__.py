"""Floor 5: canvases to clips."""
