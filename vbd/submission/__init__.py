"""Kaggle's submission.csv: written, read, checked and mended."""
