"""Where clips and captions come from: folders, tars, records, TFDS, the drawn world."""
