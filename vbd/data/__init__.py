"""From raw files to a prepared dataset, and from a prepared dataset to batches."""
