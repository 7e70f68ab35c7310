"""The page about an ensemble."""
