"""Prepares a dataset from a source, and augmented copies of it, with Ray Data."""
