"""Early stopping: at which rungs trials are compared, and which of them end there."""
