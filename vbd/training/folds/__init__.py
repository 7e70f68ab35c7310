"""Trains configurations on the folds of a dataset with Ray Train, and resumes what an output folder holds."""
