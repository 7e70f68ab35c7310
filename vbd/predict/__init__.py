"""Predicts on images or a dataset's part with an ensemble, and writes what was found."""
