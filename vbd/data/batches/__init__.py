"""From a prepared dataset to training batches."""
