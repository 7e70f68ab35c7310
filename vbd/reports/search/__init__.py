"""The page about a search."""
