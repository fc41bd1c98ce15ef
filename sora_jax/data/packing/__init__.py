"""Which clips share a row, planned; and the packs that come of it."""
